"""Writes unicode_tables.h from the Unicode character database.

    python3 data/make_unicode.py > formats/unicode_tables.h

Needs the package unicodedata2 16.0.0 (the Unicode version of the regular expressions in Hugging Face
tokenizers 0.23), or a Python whose own unicodedata has that version.
"""
import sys

try:
    import unicodedata2 as database
except ImportError:
    import unicodedata as database

if database.unidata_version != "16.0.0":
    sys.exit("expected Unicode 16.0.0, found " + database.unidata_version)

# The property White_Space, which is what \s means in a Unicode regular expression.
SPACES = {0x09, 0x0A, 0x0B, 0x0C, 0x0D, 0x20, 0x85, 0xA0, 0x1680, *range(0x2000, 0x200B),
          0x2028, 0x2029, 0x202F, 0x205F, 0x3000}
# In the order of enum unicode_class.
CLASSES = ["", "Lu Lt", "Ll", "Lm Lo", "Mn Mc Me", "Nd Nl No", "Pc Pd Ps Pe Pi Pf Po"]
SPACE = len(CLASSES)
CLASS = {category: i for i, names in enumerate(CLASSES) for category in names.split()}


def rows(values, form, width=100):
    """Comma-separated text in lines of at most `width` columns."""
    line, lines = "   ", []
    for value in values:
        item = " " + form(value) + ","
        if len(line) + len(item) > width:
            lines.append(line)
            line = "   "
        line += item
    return "\n".join(lines + [line])


def class_ranges():
    """Where the class changes: (first code point << 3) | class."""
    last = 0
    for c in range(0x110000):
        k = SPACE if c in SPACES else CLASS.get(database.category(chr(c)), 0)
        if k != last:
            yield c << 3 | k
            last = k


def combining_ranges():
    """Where the canonical combining class changes: (first code point << 8) | class."""
    last = 0
    for c in range(0x110000):
        k = database.combining(chr(c))
        if k != last:
            yield c << 8 | k
            last = k


def decompositions():
    """(code point, first, second or 0) of every canonical decomposition but Hangul's, which is a formula."""
    for c in range(0x110000):
        parts = database.decomposition(chr(c)).split()
        if parts and not parts[0].startswith("<"):
            yield (c, *[int(part, 16) for part in parts], 0)[:3]


def compositions(table):
    """Rows of the table that compose again, in the order of (first, second)."""
    again = [(a, b, i) for i, (c, a, b) in enumerate(table)
             if b and database.normalize("NFC", chr(a) + chr(b)) == chr(c)]
    return [i for a, b, i in sorted(again)]


def array(declaration, values, form=str):
    print("static const %s = {" % declaration)
    print(rows(values, form))
    print("};")


def main():
    table = list(decompositions())
    print("/* unicode_tables.h - made by data/make_unicode.py from Unicode %s: do not edit. */"
          % database.unidata_version)
    print("/* The first code point << 3 | enum unicode_class. */")
    array("uint32_t class_ranges[]", class_ranges())
    print("/* The first code point << 8 | canonical combining class. */")
    array("uint32_t combining_ranges[]", combining_ranges())
    print("/* A code point and what it is canonically made of (one or two others). */")
    array("uint32_t decompositions[][3]", table, lambda row: "{%d,%d,%d}" % row)
    print("/* Rows of decompositions that compose again, by what they are made of. */")
    array("uint16_t compositions[]", compositions(table))


main()
