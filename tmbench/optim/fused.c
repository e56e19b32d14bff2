/* One pass over many tensors: the whole step of SGDThenMultistep, each word read and written once.

   For every element, with `count` differences, newest first (the names are tmsgd.py's):

       g   = sign grad + decay w
       v   = momentum v + fresh g                      if there is a momentum buffer
       g   = look v + own g                            (v itself, or Nesterov's g + momentum v)
       d'  = sum of factors[i] differences[i] - rate g
       w   = shrink w + d',   differences[count - 1] = d'

   Without differences d' is not kept. Tensors are dense and laid out alike. */

#include <stdint.h>

typedef struct {
    double sign, decay, momentum, fresh, look, own, shrink, rate, factors[4];
} Settings;

#define INLINE static inline __attribute__((always_inline))

#define STEP(T)                                                                                                     \
    INLINE void T##_span(T *restrict w, const T *restrict grad, T *restrict v, T *restrict *d, int64_t n,           \
                         const Settings *s, const int count, const int buffer) {                                    \
        const T sign = s->sign, decay = s->decay, momentum = s->momentum, fresh = s->fresh, look = s->look,         \
                own = s->own, shrink = s->shrink, rate = s->rate;                                                   \
        const T f0 = s->factors[0], f1 = s->factors[1], f2 = s->factors[2], f3 = s->factors[3];                     \
        T *restrict a = d[0], *restrict b = d[1], *restrict c = d[2], *restrict e = d[3];                           \
        for (int64_t i = 0; i < n; i++) {                                                                           \
            T g = sign * grad[i] + decay * w[i];                                                                    \
            if (buffer) {                                                                                           \
                v[i] = momentum * v[i] + fresh * g;                                                                 \
                g = look * v[i] + own * g;                                                                          \
            }                                                                                                       \
            T step = -rate * g;                                                                                     \
            if (count > 0) step += f0 * a[i];                                                                       \
            if (count > 1) step += f1 * b[i];                                                                       \
            if (count > 2) step += f2 * c[i];                                                                       \
            if (count > 3) step += f3 * e[i];                                                                       \
            w[i] = shrink * w[i] + step;                                                                            \
            if (count == 1) a[i] = step;                                                                            \
            if (count == 2) b[i] = step;                                                                            \
            if (count == 3) c[i] = step;                                                                            \
            if (count == 4) e[i] = step;                                                                            \
        }                                                                                                           \
    }                                                                                                               \
                                                                                                                    \
    static void T##_part(T *w, const T *grad, T *v, T **d, int64_t n, const Settings *s, int count) {               \
        /* Constants, so that the compiler makes a loop without branches of each. */                                \
        switch (v ? count + 8 : count) {                                                                            \
            case 0: T##_span(w, grad, v, d, n, s, 0, 0); break;                                                     \
            case 1: T##_span(w, grad, v, d, n, s, 1, 0); break;                                                     \
            case 2: T##_span(w, grad, v, d, n, s, 2, 0); break;                                                     \
            case 3: T##_span(w, grad, v, d, n, s, 3, 0); break;                                                     \
            case 4: T##_span(w, grad, v, d, n, s, 4, 0); break;                                                     \
            case 8: T##_span(w, grad, v, d, n, s, 0, 1); break;                                                     \
            case 9: T##_span(w, grad, v, d, n, s, 1, 1); break;                                                     \
            case 10: T##_span(w, grad, v, d, n, s, 2, 1); break;                                                    \
            case 11: T##_span(w, grad, v, d, n, s, 3, 1); break;                                                    \
            case 12: T##_span(w, grad, v, d, n, s, 4, 1); break;                                                    \
        }                                                                                                           \
    }                                                                                                               \
                                                                                                                    \
    /* `pointers` holds, for each tensor: w, grad, v or 0, then its differences. */                                 \
    void T##_step(int64_t tensors, T *const *pointers, const int64_t *sizes, int64_t count, const Settings *s,      \
                  int64_t threads) {                                                                                \
        int64_t total = 0;                                                                                          \
        for (int64_t t = 0; t < tensors; t++) total += sizes[t];                                                    \
        _Pragma("omp parallel for num_threads(threads) schedule(static, 1)")                                        \
        for (int64_t k = 0; k < threads; k++) { /* the same share of all elements for each, whatever their tensors */ \
            int64_t start = total / threads * k, end = k + 1 == threads ? total : total / threads * (k + 1);        \
            for (int64_t t = 0, before = 0; t < tensors && before < end; before += sizes[t++]) {                    \
                int64_t first = start > before ? start - before : 0;                                                \
                int64_t last = end - before < sizes[t] ? end - before : sizes[t];                                   \
                if (first >= last) continue;                                                                        \
                T *const *p = pointers + t * (3 + count), *d[4] = {0};                                              \
                for (int64_t i = 0; i < count; i++) d[i] = p[3 + i] + first;                                        \
                T##_part(p[0] + first, p[1] + first, p[2] ? p[2] + first : 0, d, last - first, s, (int)count);      \
            }                                                                                                       \
        }                                                                                                           \
    }

STEP(float)
STEP(double)
