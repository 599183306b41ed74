# emulate.awk - a .cu or .cuh file for a C compiler over test/emulator.h: the same lines, and after each kernel, which is
# `static __global__ void NAME(parameters)` with its braces in the first column, what a launch needs: a struct of its
# parameters, a function that calls it with them, and launch_NAME(grid, threads, parameters). Each kernel's __shared__
# arrays lie in a section of their own. Say -v file=NAME.
function trim(s) { gsub(/^[ \t\n]+|[ \t\n]+$/, "", s); return s }
function kernel_end(   n, i, part, fields, names, values, calls) {
    n = split(parameters, part, ",")
    for (i = 1; i <= n; i++) {
        part[i] = trim(part[i])
        match(part[i], /[A-Za-z_][A-Za-z_0-9]*$/)
        name = substr(part[i], RSTART)
        fields = fields " " part[i] ";"
        values = values (i > 1 ? ", " : "") name
        calls = calls (i > 1 ? ", " : "") "arguments_->" name
    }
    printf "struct arguments_%s {%s };", kernel, fields
    printf " static void thread_%s(const void *p) { const struct arguments_%s *arguments_ = (const struct arguments_%s *)p; %s(%s); }", \
        kernel, kernel, kernel, kernel, calls
    printf " static inline void launch_%s(dim3 grid, int threads, %s) { struct arguments_%s arguments_ = { %s };", \
        kernel, parameters, kernel, values
    printf " EMULATOR_LAUNCH(%s, &arguments_, grid, threads); }\n", kernel
    printf "#line %d \"%s\"\n", NR + 1, file
    kernel = ""
}
BEGIN { printf "#line 1 \"%s\"\n", file }
{ line = $0; if (kernel != "") gsub(/__shared__/, "EMULATOR_SHARED(" kernel ")", line); print line }
/^static __global__ void/ { head = ""; reading = 1 }
reading { head = head " " $0 }
reading && /^\{/ {
    reading = 0
    gsub(/\/\*[^*]*\*\//, "", head)
    sub(/[ \t]*\{.*$/, "", head)
    gsub(/__launch_bounds__[ \t]*\([^)]*\)/, "", head)
    kernel = parameters = head
    sub(/[ \t]*\(.*$/, "", kernel)
    sub(/^.*[ \t]/, "", kernel)
    sub(/^[^(]*\(/, "", parameters)
    sub(/\)[ \t]*$/, "", parameters)
}
kernel != "" && /^\}/ { kernel_end() }
END { if (kernel != "" || reading) { print "#error the kernel " kernel head " has no } in the first column"; exit 1 } }
