/* rounding.h - what quantising would lose of a model's linears, type beside type. */
#ifndef ROUNDING_H
#define ROUNDING_H

#include "job.h"
#include "../model.h"

/* Errors of every linear as nf4, fp4 (in the blocks and with the scales that `how` has; blocks of 64 if
 * it is int8), int8 and int4, which is 15 evenly spaced values in the same blocks, to compare with: lines
 * for people, and members of a JSON object, each begun with a comma: "errors" of all linears together and
 * "tensors", a list. The model keeps its weights; memory for one tensor is taken at a time. */
int rounding_table(struct text *lines, struct text *json, const struct model *m, const struct quantise *how,
                   int threads, struct lora_error *err);

#endif
