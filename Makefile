# make          the program, ./lora
# make test     builds and runs the tests (no network, no Python, no GPU)
# make demo     fine-tunes the embedded model on the embedded tickets
# make recipe   makes that model and those tickets again
# make ladder   a matrix product and attention from plain loops to the library's, rung by rung, beside the machine's peak: docs/ladder.md
# make model    fetches a real model (needs pip and the network)
# make cuda     liblora_cuda.so, the backend `cuda`, for GPUs of compute capability 8.0 and above: needs nvcc, takes a minute
# make test-cuda    holds it against the double reference and the CPU, on a GPU
# make bench    this program beside PyTorch, PEFT and bitsandbytes (the same needs); ARGS: see bench/README.md
#
# CC=clang, NVCC=/path/to/nvcc, BUILD=dir, OPENMP=0, SANITIZE=address,undefined, EXE='qemu-aarch64 -L ...' to run tests with.

CC      ?= cc
NVCC    ?= nvcc
BUILD   ?= build
CFLAGS  ?= -O2 -g
WARN    := -Wall -Wextra -pedantic $(if $(WERROR),-Werror)
LORA_CFLAGS := -std=c99 -D_POSIX_C_SOURCE=200809L $(WARN) $(CFLAGS) -ffp-contract=off -fno-math-errno
LORA_LDFLAGS := $(LDFLAGS)
# liblora_cuda.so is looked for beside the program first.
ifeq ($(shell uname),Linux)
LORA_LDFLAGS += -Wl,-rpath,'$$ORIGIN'
endif
LORA_LIBS   := -lm$(if $(filter Linux,$(shell uname)), -ldl)
ifdef SANITIZE
LORA_CFLAGS  += -fsanitize=$(SANITIZE) -fno-sanitize-recover=all -fno-omit-frame-pointer
LORA_LDFLAGS += -fsanitize=$(SANITIZE)
endif

comma := ,

# test_faults puts its own functions before these, where the linker can.
WRAP := -Wl,$(subst $() ,$(comma),$(addprefix --wrap=,malloc calloc realloc posix_memalign free mmap munmap write fsync rename))

# Probes compile a one-line program each: yes or nothing.
probe = $(shell mkdir -p $(BUILD); printf '%b' '$(1)' > $(BUILD)/probe.c; \
          $(CC) $(CFLAGS) $(2) -o $(BUILD)/probe.out $(BUILD)/probe.c $(LDFLAGS) $(3) 2>/dev/null && echo yes)

# The answers are kept in a file, so that only the first make asks, and one after a change here.
PROBES := $(BUILD)/probes.mk
ifeq ($(filter clean,$(MAKECMDGOALS)),)
ifeq ($(shell [ $(PROBES) -nt Makefile ] && echo yes),)
OPENMP  ?= $(if $(call probe,\043include <omp.h>\nint main(void){return omp_get_max_threads()<1;}\n,-fopenmp),1,0)
HAVE_AVX2 := $(if $(call probe,\043include <immintrin.h>\nint main(void){__m256 a=_mm256_setzero_ps();a=_mm256_fmadd_ps(a$(comma)a$(comma)a);return (int)_mm256_cvtss_f32(a);}\n,-mavx2 -mfma -mf16c),1,0)
HAVE_AVX512 := $(if $(call probe,\043include <immintrin.h>\nint main(void){__m512 a=_mm512_setzero_ps();a=_mm512_maskz_fmadd_ps((__mmask16)1$(comma)a$(comma)a$(comma)a);return (int)_mm512_cvtss_f32(a);}\n,-mavx512f -mavx512vl -mavx512bw -mavx512dq),1,0)
HAVE_BF16 := $(if $(call probe,\043include <immintrin.h>\nint main(void){__m512 a=_mm512_setzero_ps();a=_mm512_dpbf16_ps(a$(comma)_mm512_cvtne2ps_pbh(a$(comma)a)$(comma)_mm512_cvtne2ps_pbh(a$(comma)a));return (int)_mm512_cvtss_f32(a);}\n,-mavx512f -mavx512bf16),1,0)
HAVE_AMX := $(if $(call probe,\043include <immintrin.h>\n\043include <sys/syscall.h>\nint main(void){_tile_zero(0);_tile_dpbf16ps(0$(comma)1$(comma)2);return SYS_arch_prctl;}\n,-mamx-tile -mamx-bf16),1,0)
HAVE_ALIGN := $(if $(call probe,int main(void){return 0;}\n,-Werror -falign-loops=64),1,0)
HAVE_NEON := $(if $(call probe,\043include <arm_neon.h>\nint main(void){float32x4_t a=vdupq_n_f32(0);a=vfmaq_laneq_f32(a$(comma)a$(comma)a$(comma)0);return (int)vaddvq_f32(a);}\n),1,0)
HAVE_WRAP := $(if $(call probe,int main(void){return 0;}\n,,$(WRAP)),1,0)
HAVE_EMULATOR := $(if $(call probe,\043include <ucontext.h>\n\043include <setjmp.h>\n\043include <sys/mman.h>\n__attribute__((section("shared_here"))) int x;\nextern char __start_shared_here[]$(comma)__stop_shared_here[];\nint main(void){ucontext_t c;getcontext(&c);return x+(int)(__stop_shared_here-__start_shared_here)-(int)sizeof x+!MAP_ANONYMOUS+!MAP_NORESERVE;}\n,-D_GNU_SOURCE -Wl$(comma)--wrap=memmove),1,0)
HAVE_FMA := $(if $(call probe,int main(void){return 0;}\n,-mavx2 -mfma),$(shell grep -q ' fma .* avx2 ' /proc/cpuinfo 2>/dev/null && echo 1))
HAVE_ACCESSES := $(if $(call probe,int main(void){return 0;}\n,-fsanitize=thread -fPIC -c),1,0)
$(shell mkdir -p $(BUILD); printf 'OPENMP := %s\nHAVE_AVX2 := %s\nHAVE_AVX512 := %s\nHAVE_BF16 := %s\nHAVE_AMX := %s\nHAVE_NEON := %s\nHAVE_WRAP := %s\nHAVE_EMULATOR := %s\nHAVE_ACCESSES := %s\nHAVE_FMA := %s\nHAVE_ALIGN := %s\n' '$(OPENMP)' '$(HAVE_AVX2)' '$(HAVE_AVX512)' '$(HAVE_BF16)' '$(HAVE_AMX)' '$(HAVE_NEON)' '$(HAVE_WRAP)' '$(HAVE_EMULATOR)' '$(HAVE_ACCESSES)' '$(HAVE_FMA)' '$(HAVE_ALIGN)' > $(PROBES))
$(info compiler $(CC); OpenMP $(if $(filter 1,$(OPENMP)),found,not found: one thread); $(if $(filter 1,$(HAVE_NEON)),NEON kernels built; )AVX2 kernels $(if $(filter 1,$(HAVE_AVX2)),built,not built (another family of processor)); AVX-512 kernels $(if $(filter 1,$(HAVE_AVX512)),built,not built); products in bf16 $(if $(filter 1,$(HAVE_BF16)),built$(if $(filter 1,$(HAVE_AMX)),$(comma) with AMX),not built); emulator of CUDA $(if $(filter 1,$(HAVE_EMULATOR)),built$(if $(filter 1,$(HAVE_ACCESSES)),, without its check of accesses (needs -fsanitize=thread)),not built (needs ELF and ucontext.h)))
endif
include $(PROBES)
endif
ifeq ($(OPENMP),1)
LORA_CFLAGS  += -fopenmp
LORA_LDFLAGS += -fopenmp
else
LORA_CFLAGS  += -Wno-unknown-pragmas
endif
# Loops begin with a line of the cache: where one happens to begin decides 2 % of attention (docs/speed-log.md).
AVX2_FLAGS := $(if $(filter 1,$(HAVE_AVX2)),-mavx2 -mfma -mf16c $(if $(filter 1,$(HAVE_ALIGN)),-falign-loops=64) -DHAVE_AVX2)
AVX512_FLAGS := $(if $(filter 11,$(HAVE_AVX2)$(HAVE_AVX512)),$(AVX2_FLAGS) -mavx512f -mavx512vl -mavx512bw -mavx512dq -DHAVE_AVX512)
BF16_FLAGS := $(if $(and $(AVX512_FLAGS),$(filter 1,$(HAVE_BF16))),$(AVX512_FLAGS) -mavx512bf16 -DHAVE_BF16)
NEON_FLAGS := $(if $(filter 1,$(HAVE_NEON)),-DHAVE_NEON)
AMX_FLAGS := $(if $(and $(BF16_FLAGS),$(filter 1,$(HAVE_AMX))),-mamx-tile -mamx-bf16 -DHAVE_AMX)

SOURCES := $(filter-out main.c kernels_ref.c,$(wildcard *.c)) $(wildcard text/*.c formats/*.c) verify/oracle.c vectors/gemm_bf16.c vectors/gemm_amx.c
VECTORS := $(if $(AVX2_FLAGS),decode_avx2 gemm_avx2 few_avx2 attention_avx2) $(if $(AVX512_FLAGS),decode_avx512 gemm_avx512 few_avx512 attention_avx512) \
    $(if $(NEON_FLAGS),decode_neon gemm_neon attention_neon)
OBJECTS := $(SOURCES:%.c=$(BUILD)/%.o) $(VECTORS:%=$(BUILD)/vectors/%.o) $(BUILD)/kernels_ref.o $(BUILD)/kernels_ref64.o
JOBS    := $(patsubst %.c,$(BUILD)/%.o,$(wildcard jobs/*.c))
DOCS    := $(patsubst docs/%.c,$(BUILD)/docs/%,$(filter-out docs/backend.c,$(wildcard docs/*.c)))
OBJECTS_SHARED := $(BUILD)/docs/backend.so $(patsubst %,$(BUILD)/test/%.so,own own_without_rope own_over own_under) $(patsubst %,$(BUILD)/test/wrong_%.so,abi own zeros sign row transposed nan_ past added)
LADDER  := $(patsubst %.c,$(BUILD)/%.o,$(wildcard docs/ladder/*.c))
TESTS   := $(patsubst test/%.c,$(BUILD)/test/%,$(wildcard test/test_*.c))

lora: $(BUILD)/lora
	cp $(BUILD)/lora $@

$(BUILD)/lora: $(BUILD)/main.o $(JOBS) $(BUILD)/liblora.a
	$(CC) $(LORA_LDFLAGS) -o $@ $^ $(LORA_LIBS)

# The CUDA kernels, in a file of their own that the program looks for when it is asked for --backend cuda: so one program
# serves machines with and without a GPU. Code for the GPUs of data centres, sm_80 (which 8.6 and 8.9 run too) and sm_90,
# and PTX, which the driver translates for newer ones. The runtime is linked in; only the driver must be there.
# `make` alone does not build it: it takes nvcc several times as long as the C compiler takes for all the rest.
CUDA_CODE := $(foreach a,80 90,-gencode arch=compute_$(a)$(comma)code=sm_$(a)) -gencode arch=compute_90$(comma)code=compute_90
CUDA_FLAGS := -std=c++20 -O3 -fmad=false --Werror all-warnings -lineinfo -Xcompiler -Wall,-Wextra,-ffp-contract=off,-fPIC -cudart static -I.
$(BUILD)/liblora_cuda.so: kernels_cuda.cu $(PROBES)
	@command -v $(NVCC) > /dev/null || { echo "make: nvcc is not here: NVCC=/path/to/nvcc, or install NVIDIA's CUDA toolkit" >&2; exit 1; }
	@mkdir -p $(@D)
	$(NVCC) $(CUDA_FLAGS) $(CUDA_CODE) -MMD -MF $@.d -shared -o $@ $<

# The example; most of its table is empty.
$(BUILD)/docs/backend_cuda.so: docs/backend.cu $(PROBES)
	@mkdir -p $(@D)
	$(NVCC) $(CUDA_FLAGS) -Xcompiler -Wno-missing-field-initializers $(CUDA_CODE) -MMD -MF $@.d -shared -o $@ $<

cuda: $(BUILD)/liblora_cuda.so $(BUILD)/docs/backend_cuda.so lora
	cp $(BUILD)/liblora_cuda.so .

$(BUILD)/liblora.a: $(OBJECTS)
	rm -f $@ && $(AR) rcs $@ $^

$(BUILD)/%.o: %.c $(PROBES)
	@mkdir -p $(@D)
	$(CC) $(LORA_CFLAGS) -MMD -MP -c -o $@ $<

# The oracle is the same file with real = double.
$(BUILD)/kernels_ref64.o: kernels_ref.c $(PROBES)
	@mkdir -p $(@D)
	$(CC) $(LORA_CFLAGS) -DREF64 -MMD -MP -c -o $@ $<

# Only the files of an instruction set get its flags: one binary runs on every machine of the family.
$(BUILD)/%_avx2.o: LORA_CFLAGS += -O3 $(AVX2_FLAGS)
$(BUILD)/%_avx512.o: LORA_CFLAGS += -O3 $(AVX512_FLAGS) -DWIDE
$(BUILD)/%_neon.o: LORA_CFLAGS += -O3 $(NEON_FLAGS)
$(BUILD)/%_bf16.o: LORA_CFLAGS += -O3 $(BF16_FLAGS)
$(BUILD)/%_amx.o: LORA_CFLAGS += $(AMX_FLAGS)
$(BUILD)/jobs/measure.o: LORA_CFLAGS += $(if $(BF16_FLAGS),-DHAVE_BF16)

# vectors/gemm_vec.c and its like are compiled for each: see vectors/vectors.h.
COMPILE_VECTORS = $(CC) $(LORA_CFLAGS) -MMD -MP -c -o $@ $<
$(BUILD)/%_avx2.o: %_vec.c $(PROBES)
	$(COMPILE_VECTORS)
$(BUILD)/%_avx512.o: %_vec.c $(PROBES)
	$(COMPILE_VECTORS)
$(BUILD)/%_neon.o: %_vec.c $(PROBES)
	$(COMPILE_VECTORS)

$(BUILD)/test/%: test/%.c $(BUILD)/liblora.a
	@mkdir -p $(@D)
	$(CC) $(LORA_CFLAGS) -MMD -MP -MF $@.d -I. -o $@ $< $(BUILD)/liblora.a $(LORA_LDFLAGS) $(LORA_LIBS) $(TEST_FLAGS)

ifeq ($(HAVE_WRAP),1)
$(BUILD)/test/test_faults: $(JOBS)
$(BUILD)/test/test_faults: TEST_FLAGS := -DHAVE_WRAP $(WRAP) $(JOBS) $(BUILD)/liblora.a $(LORA_LIBS)
endif

$(BUILD)/test/test_sampling: $(JOBS)
$(BUILD)/test/test_sampling: TEST_FLAGS := $(JOBS) $(BUILD)/liblora.a $(LORA_LIBS)

# What made the things in data/: a text generator and a tokenizer trainer.
$(BUILD)/data/make_text: $(BUILD)/data/make_text.o $(BUILD)/liblora.a
$(BUILD)/data/make_tokenizer: $(BUILD)/data/make_tokenizer.o $(BUILD)/data/bpe.o $(BUILD)/liblora.a
$(BUILD)/data/make_text $(BUILD)/data/make_tokenizer:
	$(CC) $(LORA_LDFLAGS) -o $@ $^ $(LORA_LIBS)

# The programs of docs/.
$(BUILD)/docs/%: docs/%.c $(BUILD)/liblora.a
	@mkdir -p $(@D)
	$(CC) $(LORA_CFLAGS) -MMD -MP -MF $@.d -I. -o $@ $< $(BUILD)/liblora.a $(LORA_LDFLAGS) $(LORA_LIBS)

# Backends in shared objects: the example, and copies of it with a planted fault.
SHARED = $(CC) $(LORA_CFLAGS) -fPIC -shared -MMD -MP -MF $@.d -I. $(LORA_LDFLAGS)
$(BUILD)/docs/backend.so: docs/backend.c $(PROBES)
	@mkdir -p $(@D)
	$(SHARED) -o $@ $<
$(BUILD)/test/wrong_abi.so: test/wrong_backend.c $(PROBES)
	@mkdir -p $(@D)
	$(SHARED) -DOTHER_ABI -DFAULT=sign -o $@ $<
$(BUILD)/test/wrong_own.so: test/wrong_backend.c $(PROBES)
	@mkdir -p $(@D)
	$(SHARED) -DOWN -DFAULT=none -o $@ $<
$(BUILD)/test/wrong_%.so: test/wrong_backend.c $(PROBES)
	@mkdir -p $(@D)
	$(SHARED) -DFAULT=$* -o $@ $<

# The CUDA kernels over the emulator: a backend for `lora verify --backend $(BUILD)/test/cuda_emulated.so`, and, a few
# times slower, one whose accesses are checked, $(BUILD)/test/cuda_checked.so. The files are copied, as emulate.awk adds
# what a launch needs, and compiled by the C compiler, for this machine where it has fmaf() in hardware.
EMULATED := $(patsubst %,$(BUILD)/test/cuda/%,$(wildcard *.cu *.cuh))
EMULATE = $(CC) $(filter-out -fsanitize=% -fno-sanitize-recover=all -fopenmp,$(LORA_CFLAGS)) -fPIC -MMD -MP -I.
EMULATED_LINK := $(addprefix -Wl$(comma)--wrap=,memset memcpy memmove)
EMULATE_FAST := -O3 $(if $(filter 1,$(HAVE_FMA)),-mavx2 -mfma)
.SECONDARY: $(EMULATED) $(patsubst %,$(BUILD)/test/cuda/%.cu,emulator_kernels backend)    # else make tells of removing them last
$(BUILD)/test/cuda/%: % test/emulate.awk
	@mkdir -p $(@D)
	awk -v file=$< -f test/emulate.awk $< > $@
$(BUILD)/test/cuda/%: test/% test/emulate.awk
	@mkdir -p $(@D)
	awk -v file=$< -f test/emulate.awk $< > $@
$(BUILD)/test/cuda/%.o: $(BUILD)/test/cuda/%.cu $(EMULATED) $(PROBES)
	$(EMULATE) $(EMULATE_FAST) -x c -c -o $@ $<
$(BUILD)/test/cuda/%_checked.o: $(BUILD)/test/cuda/%.cu $(EMULATED) $(PROBES)
	$(EMULATE) $(if $(filter 1,$(HAVE_ACCESSES)),-fsanitize=thread) -x c -c -o $@ $<
EMULATOR := $(BUILD)/test/emulator.o $(BUILD)/test/emulator_memory.o
$(EMULATOR): $(BUILD)/%.o: %.c $(PROBES)
	@mkdir -p $(@D)
	$(EMULATE) -O3 -c -o $@ $<
$(BUILD)/test/cuda_emulated.so: $(BUILD)/test/cuda/kernels_cuda.o
$(BUILD)/test/cuda_checked.so: $(BUILD)/test/cuda/kernels_cuda_checked.o
$(BUILD)/test/cuda_emulated.so $(BUILD)/test/cuda_checked.so: $(EMULATOR)
	$(CC) -shared -Wl,-Bsymbolic $(EMULATED_LINK) $(LDFLAGS) -o $@ $^ -lm
ifeq ($(HAVE_EMULATOR),1)
$(BUILD)/test/test_emulator: $(BUILD)/test/cuda/emulator_kernels_checked.o $(EMULATOR)
$(BUILD)/test/test_emulator: TEST_FLAGS := -DHAVE_EMULATOR $(if $(filter 1,$(HAVE_ACCESSES)),-DHAVE_ACCESSES) \
    $(BUILD)/test/cuda/emulator_kernels_checked.o $(EMULATOR) $(EMULATED_LINK) $(LORA_LIBS)
$(BUILD)/test/test_cuda: TEST_FLAGS := $(if $(filter 1,$(HAVE_ACCESSES)),-DHAVE_ACCESSES)
endif

# The example for a GPU, over the emulator.
$(BUILD)/test/cuda/%: docs/% test/emulate.awk
	@mkdir -p $(@D)
	awk -v file=$< -f test/emulate.awk $< > $@
$(BUILD)/test/backend_emulated.so: $(BUILD)/test/cuda/backend.o $(EMULATOR)
	$(CC) -shared -Wl,-Bsymbolic $(EMULATED_LINK) $(LDFLAGS) -o $@ $^ -lm

# The reference as a table with its own memory; without one of its entries; over a table of the host's, and below one.
OWN := weight.c nf4.c util.c
$(patsubst %,$(BUILD)/test/%.so,own own_without_rope own_over own_under): test/own_backend.c kernels_ref.c kernels.h $(OWN) $(PROBES)
	@mkdir -p $(@D)
	$(CC) $(LORA_CFLAGS) -fPIC -shared -I. $(if $(findstring without,$(@F)),-DLACKS=rope)$(if $(findstring over,$(@F)),-DOVER)$(if $(findstring under,$(@F)),-DUNDER) $(LORA_LDFLAGS) -o $@ $< $(OWN) -lm

# The rungs from the fourth on are for vectors; which sums may be added in another order, they say themselves.
$(patsubst %.c,$(BUILD)/%.o,$(wildcard docs/ladder/0[4-9]*.c docs/ladder/a*.c)): LORA_CFLAGS += -O3 $(AVX2_FLAGS) -fopenmp-simd -ffp-contract=fast
$(BUILD)/docs/ladder/run: $(LADDER) $(BUILD)/jobs/measure.o $(BUILD)/jobs/system.o $(BUILD)/liblora.a
	$(CC) $(LORA_LDFLAGS) -o $@ $^ $(LORA_LIBS)

ladder: $(BUILD)/docs/ladder/run
	@$(BUILD)/docs/ladder/run $(ARGS)

# All that `make test` runs.
tests: $(BUILD)/docs/ladder/run
tests: $(BUILD)/lora $(DOCS) $(OBJECTS_SHARED) $(TESTS) \
    $(if $(filter 1,$(HAVE_EMULATOR)),$(patsubst %,$(BUILD)/test/%.so,backend_emulated cuda_emulated cuda_checked))

test: tests
	EXE='$(EXE)' LORA='$(BUILD)/lora' CC='$(CC)' \
	EMULATE='$(if $(filter 11,$(HAVE_EMULATOR)$(HAVE_ACCESSES)),$(filter-out -MMD -MP,$(EMULATE)) -O1 -g0 -w -fsanitize=thread)' sh test/run.sh $(TESTS)

# Without nvcc, or without a GPU, it says so, and that is a skip.
test-cuda: $(BUILD)/lora $(BUILD)/test/test_whole $(if $(shell command -v $(NVCC)),$(BUILD)/liblora_cuda.so)
	@LORA='$(BUILD)/lora' sh test/cuda.sh

# Builds with all processors: the whole is to take less than a minute on two.
demo:
	@$(MAKE) --no-print-directory $(if $(findstring j,$(MAKEFLAGS)),,-j$(shell getconf _NPROCESSORS_ONLN)) lora
	@LORA='$(BUILD)/lora' sh data/demo.sh

# Makes data/model and data/tickets again, from nothing but the grammars: half an hour on two cores.
recipe: $(BUILD)/lora $(BUILD)/data/make_text $(BUILD)/data/make_tokenizer
	BUILD='$(BUILD)' sh data/recipe.sh

model:
	sh data/fetch.sh

bench: lora
	bench/peers.sh $(ARGS)

clean:
	rm -rf $(BUILD) lora

.PHONY: lora cuda tests test test-cuda ladder demo recipe model bench clean
# Those of before this Makefile may name files that are gone, and all is built again after a change of it.
-include $(shell find $(BUILD) -name '*.d' -newer Makefile 2>/dev/null)
