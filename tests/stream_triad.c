/* The triad a = b + 3 c by all OpenMP threads: bytes per second of the median pass, counted as 24 for
   each element. Arguments: elements of each array, passes. */
#include <omp.h>
#include <stdio.h>
#include <stdlib.h>

static int ascending(const void *left, const void *right) {
    double x = *(const double *)left, y = *(const double *)right;
    return (x > y) - (x < y);
}

int main(int count, char **arguments) {
    if (count != 3) return 2;
    long size = atol(arguments[1]), passes = atol(arguments[2]);
    double *a = aligned_alloc(4096, size * 8), *b = aligned_alloc(4096, size * 8);
    double *c = aligned_alloc(4096, size * 8), *seconds = malloc(passes * sizeof *seconds);
    if (!a || !b || !c || !seconds) return 1;
    #pragma omp parallel for
    for (long i = 0; i < size; i++) a[i] = 0, b[i] = 1, c[i] = 2;
    for (long pass = 0; pass < passes; pass++) {
        double started = omp_get_wtime();
        #pragma omp parallel for
        for (long i = 0; i < size; i++) a[i] = b[i] + 3 * c[i];
        seconds[pass] = omp_get_wtime() - started;
    }
    qsort(seconds, passes, sizeof *seconds, ascending);
    printf("%.0f\n", 24.0 * size / seconds[passes / 2]);
    return a[size / 2] != 7;
}
