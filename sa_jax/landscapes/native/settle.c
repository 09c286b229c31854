/* One proposal on the landscape of a masked multilayer perceptron: the energy of the proposed network, the
 * Metropolis-Hastings rule, and, if the proposal is accepted, the new outputs of the layers.
 *
 * Samples are taken in blocks that fit into a cache. A block passes through all layers, and only the rows of units
 * that the proposal touches are read. To follow one proposal, read from the end of the file: `settle`, `make_plan`,
 * `evaluate`, `add_losses`.
 */
#include <math.h>
#include <stdint.h>
#include <stdlib.h>
#include <string.h>

#include "xla/ffi/api/c_api.h"

/* Vectors have the size of the processor's registers: compilers do badly with larger ones. */
#if defined(__AVX512F__)
#include <immintrin.h>
#define LANES 16
#define REGISTERS 32
#define MAX(a, b) _mm512_max_ps(a, b)
#elif defined(__AVX__)
#include <immintrin.h>
#define LANES 8
#define MAX(a, b) _mm256_max_ps(a, b)
#elif defined(__SSE__)
#include <immintrin.h>
#define LANES 4
#define MAX(a, b) _mm_max_ps(a, b)
#else
#define LANES 4
#define MAX(a, b) choose(a > b, a, b)
#endif
#ifndef REGISTERS
#define REGISTERS 16
#endif
#define BLOCK 256               /* samples of a block */
#define VECTORS (REGISTERS / 2) /* vectors of sums that stay in registers */
#define PART (VECTORS * LANES)

typedef float vec __attribute__((vector_size(LANES * 4), aligned(4), may_alias));
typedef int32_t ivec __attribute__((vector_size(LANES * 4), aligned(4), may_alias));

enum { RELU, TANH, GELU };
enum { CROSS_ENTROPY, KL_TO_TEACHER, MARGIN_LOSS, ERROR_RATE };

/* A network at a position, with the outputs of its layers. */
typedef struct {
  int64_t layers, samples;
  const int64_t *sizes;  /* width of the input and of each layer, [layers + 1] */
  const int64_t *starts; /* first branch of each layer, then the number of branches, [layers + 1] */
  const float *inputs;   /* [features, samples] */
  const void *targets;   /* labels, int32 [samples], or predictions, float32 [classes, samples] */
  const uint8_t *mask;   /* [branches] */
  const float **weights; /* of each layer, [inputs, outputs] */
  float **outputs;       /* of each layer before its activation, [units, samples] */
  int activation, energy;
  float scale;     /* factor on the logits, or the margin */
  float smoothing; /* share of each label that is spread over all classes */
} Network;

/* A swap of two branches, or, where they are the same, a change of one weight. */
typedef struct {
  int64_t pruned, grown;
  float nudge;
} Move;

/* A row times a factor, to be added to the row of a touched unit. The row is the change of a touched unit of the
 * layer before, by its place there, or, if negative, the input of the first (-1) or second (-2) end of the move. */
typedef struct {
  int32_t row;
  float factor;
} Term;

/* The units whose rows may change, layer by layer, and the terms that are added to them. */
typedef struct {
  int64_t *first; /* number of touched units in the layers before, [layers + 1] */
  int32_t *units; /* numbers of the touched units within their layers */
  int64_t *start; /* first term of each touched unit, [touched + 1] */
  Term *terms;
  int ends;
  int64_t end_layer[2], end_unit[2]; /* the layer of each end's branch, and the unit or input that it leaves */
} Plan;

/* Memory that a thread keeps from call to call. */
typedef struct {
  void *memory;
  size_t size;
} Arena;

/* The new rows of a proposal are kept until it is accepted if they take no more than this. */
#define KEPT_BYTES (1 << 20)

static _Thread_local Arena plan_arena, work_arena, kept_arena;

static void *reserve(Arena *arena, size_t size) {
  if (arena->size < size) {
    free(arena->memory);
    arena->size = (size + 4095) / 4096 * 4096;
    arena->memory = aligned_alloc(64, arena->size);
    if (!arena->memory) arena->size = 0;
  }
  return arena->memory;
}

static inline vec splat(float x) { return x - (vec){0}; }
static inline vec load(const float *p) { return *(const vec *)p; }
static inline void store(float *p, vec x) { *(vec *)p = x; }

static inline vec choose(ivec where, vec a, vec b) { return (vec)((where & (ivec)a) | (~where & (ivec)b)); }

/* The larger of two values; b where one of them is NaN. */
static inline vec larger(vec a, vec b) { return (vec)MAX(a, b); }

/* exp(factor * x) for factor * x <= 0, with a relative error of 2e-7; NaN stays NaN. Of log2(e) * factor * x the
 * whole part becomes the exponent, and a polynomial gives the power of 2 of the rest. */
static inline vec exponential(vec x, float factor) {
  x = larger(splat(-126), x * (factor * 1.44269504f));
  const vec shifted = x + 12582912.0f; /* 1.5 * 2^23: the lowest bits hold the whole part */
  const vec rest = x - (shifted - 12582912.0f);
  vec power = rest * 0.0013283392f + 0.0096742986f;
  power = power * rest + 0.055506781f;
  power = power * rest + 0.24022181f;
  power = power * rest + 0.69314700f;
  power = power * rest + 1.0f;
  return (vec)((ivec)power + ((ivec)shifted << 23));
}

/* By a polynomial near 0, from Cephes (Moshier 1992), else by exp. */
static inline vec hyperbolic_tangent(vec x) {
  const vec magnitude = larger(-x, x), square = x * x, e = exponential(magnitude, -2), t = (1.0f - e) / (1.0f + e);
  vec p = square * -5.70498872745e-3f + 2.06390887954e-2f;
  p = p * square - 5.37397155531e-2f;
  p = p * square + 1.33314422036e-1f;
  p = p * square - 3.33332819422e-1f;
  return choose(magnitude < 0.625f, p * square * x + x, choose(x < 0.0f, -t, t));
}

static inline vec activate(int kind, vec x) {
  if (kind == RELU) return larger(splat(0), x);
  if (kind == TANH) return hyperbolic_tangent(x);
  return 0.5f * x * (1.0f + hyperbolic_tangent(0.7978845608f * (x + 0.044715f * x * x * x)));
}

/* A block of a row: the row itself, or, at the end of the samples, a copy with zeros behind. */
static inline const float *block_of(const float *row, int64_t samples, int64_t at, float *copy) {
  int64_t left = samples - at;
  if (left >= BLOCK) return row + at;
  memcpy(copy, row + at, left * 4);
  memset(copy + left, 0, (BLOCK - left) * 4);
  return copy;
}

/* Starts to bring the next block of a row into the cache. */
static inline void fetch_next(const float *row, int64_t samples, int64_t at) {
  for (int64_t i = at + BLOCK; i < at + 2 * BLOCK && i < samples; i += 16) __builtin_prefetch(row + i);
}

/* Finds the terms that touched units of the layer before add to the units of a layer, in order. */
static int64_t find_terms(const Network *net, const Plan *plan, const Move *move, int64_t layer, int64_t number,
                          Term *found, int32_t *into, int64_t *count) {
  const int64_t width = net->sizes[layer + 1], from = plan->first[layer - 1], to = plan->first[layer];
  for (int64_t place = from; place < to; ++place) {
    const int64_t begin = (int64_t)plan->units[place] * width;
    const uint8_t *kept = net->mask + net->starts[layer] + begin;
    const float *weights = net->weights[layer] + begin;
    const int64_t pruned = move->pruned - net->starts[layer] - begin;
    const int64_t grown = plan->ends == 2 ? move->grown - net->starts[layer] - begin : -1;
    for (int64_t j = 0; j < width; ++j) {
      uint64_t eight = 1;
      if (!(j & 7) && j + 8 <= width) memcpy(&eight, kept + j, 8);
      if (!eight) {
        j += 7;
        continue;
      }
      if (!kept[j] || (j == pruned && plan->ends == 2)) continue;
      into[number] = (int32_t)j;
      found[number++] = (Term){(int32_t)(place - from), weights[j] + (j == pruned ? move->nudge : 0)};
      ++count[j];
    }
    if (grown < 0 || grown >= width) continue;
    into[number] = (int32_t)grown;
    found[number++] = (Term){(int32_t)(place - from), weights[grown]};
    ++count[grown];
  }
  return number;
}

/* Fills the plan of a move. Returns whether there was memory for it. */
static int make_plan(const Network *net, const Move *move, Plan *plan) {
  const int64_t layers = net->layers, *sizes = net->sizes, *starts = net->starts;
  int64_t units = 0, widest = 0, most = 0;
  for (int64_t l = 0; l < layers; ++l) {
    units += sizes[l + 1];
    if (sizes[l + 1] > widest) widest = sizes[l + 1];
    if (l && sizes[l] * sizes[l + 1] > most) most = sizes[l] * sizes[l + 1];
  }
  /* At most all branches after the first layer, and the grown one twice. */
  const int64_t all = starts[layers] - starts[1] + 4;
  char *memory = reserve(&plan_arena, (layers + 1 + units + 1 + widest) * sizeof(int64_t) +
                                          (all + most + 4) * sizeof(Term) + (units + most + 4) * sizeof(int32_t));
  if (!memory) return 0;
  plan->first = (int64_t *)memory;
  plan->start = plan->first + layers + 1;
  int64_t *count = plan->start + units + 1;
  plan->terms = (Term *)(count + widest);
  Term *found = plan->terms + all;
  int32_t *into = (int32_t *)(found + most + 4);
  plan->units = into + most + 4;

  float factors[2];
  int64_t entered[2];
  plan->ends = move->pruned != move->grown ? 2 : 1;
  for (int end = 0; end < plan->ends; ++end) {
    int64_t branch = end ? move->grown : move->pruned, layer = 0;
    while (branch >= starts[layer + 1]) ++layer;
    const float weight = net->weights[layer][branch - starts[layer]];
    factors[end] = plan->ends == 1 ? move->nudge : end ? weight : -weight;
    plan->end_layer[end] = layer;
    plan->end_unit[end] = (branch - starts[layer]) / sizes[layer + 1];
    entered[end] = (branch - starts[layer]) % sizes[layer + 1];
  }
  int64_t touched = 0, terms = 0;
  plan->first[0] = 0;
  for (int64_t l = 0; l < layers; ++l) {
    int64_t number = 0;
    memset(count, 0, sizes[l + 1] * sizeof(int64_t));
    for (int end = 0; end < plan->ends; ++end) {
      if (plan->end_layer[end] != l) continue;
      into[number] = (int32_t)entered[end];
      found[number++] = (Term){-1 - end, factors[end]};
      ++count[entered[end]];
    }
    if (l) number = find_terms(net, plan, move, l, number, found, into, count);
    /* Sorted by the unit that they enter. */
    int64_t next = terms;
    for (int64_t j = 0; number && j < sizes[l + 1]; ++j) {
      if (!count[j]) continue;
      plan->units[touched] = (int32_t)j;
      plan->start[touched++] = next;
      next += count[j];
      count[j] = next - count[j];
    }
    for (int64_t i = 0; i < number; ++i) plan->terms[count[into[i]]++] = found[i];
    terms = next;
    plan->first[l + 1] = touched;
  }
  plan->start[touched] = terms;
  return 1;
}

/* The sum of the samples' losses. A logarithm of a product of many softmax sums replaces that of each sum. */
typedef struct {
  double total, products[LANES];
  int factors, most; /* number of factors in each product, and the most that cannot overflow */
} Loss;

static void take_logarithms(Loss *loss) {
  for (int i = 0; i < LANES; ++i) {
    loss->total += log(loss->products[i]);
    loss->products[i] = 1;
  }
  loss->factors = 0;
}

/* Adds the losses of one block of samples; `rows` are the logits of each class. */
static inline __attribute__((always_inline)) void add_losses_of(int energy, const Network *net,
                                                                 const float *const *rows, int64_t at, Loss *loss) {
  const int64_t classes = net->sizes[net->layers], left = net->samples - at;
  const float scale = net->scale;
  int32_t copy[BLOCK] = {0};
  const int32_t *labels = (const int32_t *)net->targets + at;
  if (energy != KL_TO_TEACHER && left < BLOCK) labels = memcpy(copy, labels, left * 4);
  ivec lane;
  for (int i = 0; i < LANES; ++i) lane[i] = i;
  vec sum = {0};
  for (int v = 0; v * LANES < BLOCK && v * LANES < left; ++v) {
    const ivec inside = lane < (int32_t)(left - v * LANES < LANES ? left - v * LANES : LANES);
    const ivec label = energy != KL_TO_TEACHER ? *(const ivec *)(labels + v * LANES) : (ivec){0};
    vec largest = load(rows[0] + v * LANES), wanted = choose(label == 0, largest, splat(0)), all = largest;
    if (energy == MARGIN_LOSS) {
      largest = splat(-INFINITY);
      ivec is_nan = {0};
      for (int64_t c = 0; c < classes; ++c) {
        const vec logit = load(rows[c] + v * LANES);
        const ivec is_label = label == (int32_t)c;
        largest = larger(choose(is_label, splat(-INFINITY), logit), largest);
        wanted = choose(is_label, logit, wanted);
        is_nan |= logit != logit;
      }
      const vec lacks = 1.0f - (wanted - largest) / scale;
      sum += choose(inside, choose(is_nan, splat(NAN), larger(splat(0), lacks)), splat(0));
      continue;
    }
    for (int64_t c = 1; c < classes; ++c) largest = larger(load(rows[c] + v * LANES), largest);
    if (energy == ERROR_RATE) {
      ivec first = (ivec){0} - 1;
      for (int64_t c = classes - 1; c >= 0; --c) {
        const ivec is_largest = load(rows[c] + v * LANES) == largest;
        first = (is_largest & (int32_t)c) | (~is_largest & first);
      }
      sum += choose((first != label) & inside, splat(1), splat(0));
      continue;
    }
    vec exponentials = exponential(load(rows[0] + v * LANES) - largest, scale);
    if (energy == KL_TO_TEACHER) {
      wanted = splat(0);
      exponentials = splat(0);
      for (int64_t c = 0; c < classes; ++c) {
        const vec logit = load(rows[c] + v * LANES);
        float tail[LANES] = {0};
        const float *predicted = (const float *)net->targets + c * net->samples + at + v * LANES;
        if (left - v * LANES < LANES) predicted = memcpy(tail, predicted, (left - v * LANES) * 4);
        exponentials += exponential(logit - largest, scale);
        wanted += load(predicted) * logit;
      }
    } else {
      for (int64_t c = 1; c < classes; ++c) {
        const vec logit = load(rows[c] + v * LANES);
        exponentials += exponential(logit - largest, scale);
        wanted = choose(label == (int32_t)c, logit, wanted);
        all += logit;
      }
      if (net->smoothing) wanted = (1 - net->smoothing) * wanted + net->smoothing / classes * all;
    }
    sum += choose(inside, (largest - wanted) * scale, splat(0));
    exponentials = choose(inside, exponentials, splat(1));
    for (int i = 0; i < LANES; ++i) loss->products[i] *= exponentials[i];
    if (++loss->factors >= loss->most) take_logarithms(loss);
  }
  for (int i = 0; i < LANES; ++i) loss->total += sum[i];
}

static void add_losses(const Network *net, const float *const *rows, int64_t at, Loss *loss) {
  if (net->energy == CROSS_ENTROPY) add_losses_of(CROSS_ENTROPY, net, rows, at, loss);
  else if (net->energy == KL_TO_TEACHER) add_losses_of(KL_TO_TEACHER, net, rows, at, loss);
  else if (net->energy == MARGIN_LOSS) add_losses_of(MARGIN_LOSS, net, rows, at, loss);
  else add_losses_of(ERROR_RATE, net, rows, at, loss);
}

/* The buffers of one block of samples. The layers take turns with the two of each pair. */
typedef struct {
  float *changes[2];     /* rows of changes of activations; the inputs of the ends of the move lie before the first */
  uint8_t *unchanged[2]; /* whether a row of changes is zero */
  float *padded;         /* copies of logits at the end of the samples */
  const float **logits;  /* the row of each class */
} Work;

static int make_work(const Network *net, const Plan *plan, Work *work) {
  const int64_t classes = net->sizes[net->layers];
  int64_t most = 2;
  for (int64_t l = 0; l < net->layers; ++l)
    if (plan->first[l + 1] - plan->first[l] + 2 > most) most = plan->first[l + 1] - plan->first[l] + 2;
  char *memory = reserve(&work_arena, (2 * most + classes) * BLOCK * 4 + classes * sizeof(float *) + 2 * most);
  if (!memory) return 0;
  work->padded = (float *)memory + 2 * most * BLOCK;
  work->logits = (const float **)(work->padded + classes * BLOCK);
  uint8_t *unchanged = memset((void *)(work->logits + classes), 0, 2 * most);
  for (int i = 0; i < 2; ++i) {
    work->changes[i] = (float *)memory + (i * most + 2) * BLOCK;
    work->unchanged[i] = unchanged + i * most + 2;
  }
  return 1;
}

/* Sets a part of the new row of a touched unit, and, in a hidden layer, of the change of its activation. Returns
 * where that is not zero. */
static inline __attribute__((always_inline)) ivec set_part(const Term *term, const Term *end, const float *added,
                                                            const uint8_t *unchanged, const float *old, float *fresh,
                                                            int activation, float *change) {
  vec sums[VECTORS];
  for (int v = 0; v < VECTORS; ++v) sums[v] = load(old + v * LANES);
  for (; term < end; ++term) {
    if (unchanged[term->row]) continue;
    const float factor = term->factor, *row = added + term->row * BLOCK;
    for (int v = 0; v < VECTORS; ++v) sums[v] += factor * load(row + v * LANES);
  }
  ivec any = {0};
  for (int v = 0; v < VECTORS; ++v) {
    store(fresh + v * LANES, sums[v]);
    if (!change) continue;
    const vec moved = activate(activation, sums[v]) - activate(activation, load(old + v * LANES));
    any |= moved != 0.0f;
    store(change + v * LANES, moved);
  }
  return any;
}

/* Sets the new row of a touched unit, and, in a hidden layer, the change of its activation. */
static inline void set_row(const Network *net, const Plan *plan, const Work *work, int64_t layer, int64_t place,
                           const float *old, float *fresh) {
  const float *added = work->changes[(layer + 1) & 1];
  const uint8_t *unchanged = work->unchanged[(layer + 1) & 1];
  const Term *begin = plan->terms + plan->start[place], *end = plan->terms + plan->start[place + 1];
  const int64_t row = place - plan->first[layer];
  float *change = work->changes[layer & 1] + row * BLOCK;
  ivec any = {0};
  for (int at = 0; at < BLOCK; at += PART) {
#define SET(kind, change) set_part(begin, end, added + at, unchanged, old + at, fresh + at, kind, change)
    if (layer == net->layers - 1) SET(RELU, NULL);
    else if (net->activation == RELU) any |= SET(RELU, change + at);
    else if (net->activation == TANH) any |= SET(TANH, change + at);
    else any |= SET(GELU, change + at);
  }
  int found = 0;
  for (int i = 0; i < LANES; ++i) found |= any[i];
  work->unchanged[layer & 1][row] = !found;
}

/* Computes the rows of the touched units, block by block. Returns the sum of the losses.
 *
 * `rows` holds the new rows of one block, [touched, BLOCK], or of all blocks if `step` is not 0. With `write` they are
 * written to the outputs of the layers, and no losses are computed. */
static double evaluate(Network *net, const Plan *plan, const Work *work, float *rows, int64_t step, int write) {
  const int64_t layers = net->layers, samples = net->samples, classes = net->sizes[layers];
  Loss loss = {.most = (int)(250 / log10((double)classes + 1))};
  for (int i = 0; i < LANES; ++i) loss.products[i] = 1;
  float copy[BLOCK];
  for (int64_t at = 0; at < samples; at += BLOCK, rows += step) {
    const int64_t left = samples - at < BLOCK ? samples - at : BLOCK;
    for (int end = 0; end < plan->ends; ++end) {
      const int64_t l = plan->end_layer[end];
      const float *row = (l ? net->outputs[l - 1] : net->inputs) + plan->end_unit[end] * samples;
      float *entering = work->changes[(l + 1) & 1] - (1 + end) * BLOCK;
      fetch_next(row, samples, at);
      row = block_of(row, samples, at, copy);
      for (int v = 0; v < BLOCK; v += LANES)
        store(entering + v, l ? activate(net->activation, load(row + v)) : load(row + v));
    }
    for (int64_t l = 0; l < layers; ++l)
      for (int64_t place = plan->first[l]; place < plan->first[l + 1]; ++place) {
        float *row = net->outputs[l] + plan->units[place] * samples, *fresh = rows + place * BLOCK;
        fetch_next(row, samples, at);
        set_row(net, plan, work, l, place, block_of(row, samples, at, copy), fresh);
        if (write) memcpy(row + at, fresh, left * 4);
      }
    if (write) continue;
    int64_t place = plan->first[layers - 1];
    for (int64_t c = 0; c < classes; ++c) {
      const float *row = net->outputs[layers - 1] + c * samples;
      if (place < plan->first[layers] && plan->units[place] == c) work->logits[c] = rows + place++ * BLOCK;
      else work->logits[c] = block_of(row, samples, at, work->padded + c * BLOCK);
    }
    add_losses(net, work->logits, at, &loss);
  }
  take_logarithms(&loss);
  return loss.total;
}

/* The Metropolis-Hastings rule of `sa_jax.annealing.chain.accept`. */
static int accepts(float change, float log_q_ratio, float temperature, float log_u) {
  const float metropolis = -change / temperature + log_q_ratio;
  const float greedy = change < 0 ? INFINITY : change == 0 ? log_q_ratio : -INFINITY;
  return log_u <= (temperature > 0 ? metropolis : greedy);
}

typedef struct {
  float nudge, log_q_ratio, log_u, temperature, energy, scale, smoothing;
} Reals;

/* The mean of the losses. That of errors is rounded as XLA does it, so that equal numbers of errors stay equal. */
static float mean(const Network *net, double total) {
  if (net->energy == ERROR_RATE) return (float)total * (1.0f / (float)net->samples);
  return (float)(total / net->samples);
}

/* Settles one proposal of one chain. Returns whether there was memory for it. */
static int settle_one(Network *net, Move move, const Reals *reals, int32_t *accepted, float *energy) {
  *accepted = 0;
  *energy = reals->energy;
  if (!(reals->log_q_ratio > -INFINITY)) return 1; /* the proposal stays in place */
  Plan plan;
  Work work;
  if (!make_plan(net, &move, &plan) || !make_work(net, &plan, &work)) return 0;
  const int64_t layers = net->layers, touched = plan.first[layers], step = touched * BLOCK;
  const int64_t blocks = (net->samples + BLOCK - 1) / BLOCK, keep = blocks * step * 4 <= KEPT_BYTES;
  float *rows = reserve(&kept_arena, (keep ? blocks * step : step) * 4);
  if (!rows) return 0;
  if (plan.first[layers - 1] != touched)
    *energy = mean(net, evaluate(net, &plan, &work, rows, keep ? step : 0, 0));
  *accepted = accepts(*energy - reals->energy, reals->log_q_ratio, reals->temperature, reals->log_u);
  if (!*accepted) return 1;
  if (!keep || plan.first[layers - 1] == touched) { /* the rows were not kept, or not computed */
    evaluate(net, &plan, &work, rows, 0, 1);
    return 1;
  }
  for (int64_t l = 0; l < layers; ++l)
    for (int64_t place = plan.first[l]; place < plan.first[l + 1]; ++place) {
      float *row = net->outputs[l] + plan.units[place] * net->samples;
      for (int64_t at = 0; at < net->samples; at += BLOCK) {
        const int64_t left = net->samples - at < BLOCK ? net->samples - at : BLOCK;
        memcpy(row + at, rows + at / BLOCK * step + place * BLOCK, left * 4);
      }
    }
  return 1;
}

/* A buffer of a call for many chains. Its leading axes are those of the chains; one of size 1 is shared by all. */
typedef struct {
  char *data;
  int64_t bytes, axes;      /* bytes of one chain, and the number of leading axes */
  const int64_t *own, *all; /* sizes of the leading axes, of this buffer and of the chains */
} Operand;

/* The last `rank` axes are those of one chain; `scalars` is an array of one value for each chain. */
static Operand operand(const XLA_FFI_Buffer *buffer, int rank, int64_t bytes, const XLA_FFI_Buffer *scalars) {
  for (int64_t axis = buffer->rank - rank; axis < buffer->rank; ++axis) bytes *= buffer->dims[axis];
  return (Operand){buffer->data, bytes, scalars->rank, buffer->dims, scalars->dims};
}

static void *of_chain(Operand operand, int64_t chain) {
  char *data = operand.data;
  for (int64_t axis = operand.axes - 1; axis >= 0; chain /= operand.all[axis--]) {
    if (operand.own[axis] == 1) continue;
    data += chain % operand.all[axis] * operand.bytes;
    operand.bytes *= operand.own[axis];
  }
  return data;
}

static XLA_FFI_Error *failure(XLA_FFI_CallFrame *frame, const char *message) {
  XLA_FFI_Error_Create_Args args = {XLA_FFI_Error_Create_Args_STRUCT_SIZE, 0, message, XLA_FFI_Error_Code_INTERNAL};
  return frame->api->XLA_FFI_Error_Create(&args);
}

/* Answers XLA's question for the version of its interface. Returns whether it was one. */
static int described(XLA_FFI_CallFrame *frame) {
  XLA_FFI_Extension_Base *extension = frame->extension_start;
  if (!extension || extension->type != XLA_FFI_Extension_Metadata) return 0;
  XLA_FFI_Metadata *metadata = ((XLA_FFI_Metadata_Extension *)extension)->metadata;
  metadata->api_version.major_version = XLA_FFI_API_MAJOR;
  metadata->api_version.minor_version = XLA_FFI_API_MINOR;
  metadata->traits = 0;
  return 1;
}

enum { WHOLE, REALS, MASK, INPUTS, TARGETS, WEIGHTS };
enum { PRUNED, GROWN, ACTIVATION, ENERGY };
enum { ACCEPTED, NEW_ENERGY, OUTPUTS };

/* The call. Arguments: whole numbers, int32 [4]; reals, float32 [7]; mask; inputs; targets; the weights of each layer,
 * or of all layers in one array; the outputs of each layer. Results: whether the proposal is accepted, int32 []; the
 * energy of the proposed position, float32 []; the outputs, in place. All may have leading axes of chains. */
XLA_FFI_Error *settle(XLA_FFI_CallFrame *frame) {
  if (described(frame) || frame->stage != XLA_FFI_ExecutionStage_EXECUTE) return NULL;
  XLA_FFI_Buffer **args = (XLA_FFI_Buffer **)frame->args.args, **rets = (XLA_FFI_Buffer **)frame->rets.rets;
  const int64_t layers = frame->rets.size - OUTPUTS, arrays = frame->args.size - WEIGHTS - layers;
  const XLA_FFI_Buffer *scalars = rets[ACCEPTED];
  int64_t chains = 1, sizes[layers + 1], starts[layers + 1];
  for (int64_t axis = 0; axis < scalars->rank; ++axis) chains *= scalars->dims[axis];
  sizes[0] = args[INPUTS]->dims[args[INPUTS]->rank - 2];
  starts[0] = 0;
  Operand weights[layers], outputs[layers];
  const float *weights_of[layers];
  float *outputs_of[layers];
  for (int64_t l = 0; l < layers; ++l) {
    const XLA_FFI_Buffer *of_layer = rets[OUTPUTS + l];
    sizes[l + 1] = of_layer->dims[of_layer->rank - 2];
    starts[l + 1] = starts[l] + sizes[l] * sizes[l + 1];
    outputs[l] = operand(of_layer, 2, 4, scalars);
    if (of_layer->data != args[WEIGHTS + arrays + l]->data) return failure(frame, "the outputs are not in place");
  }
  for (int64_t i = 0; i < arrays; ++i) weights[i] = operand(args[WEIGHTS + i], 1, 4, scalars);
  const Operand whole = operand(args[WHOLE], 1, 4, scalars), reals = operand(args[REALS], 1, 4, scalars);
  const Operand mask = operand(args[MASK], 1, 1, scalars), inputs = operand(args[INPUTS], 2, 4, scalars);
  for (int64_t chain = 0; chain < chains; ++chain) {
    const int32_t *numbers = of_chain(whole, chain);
    const Reals *real = of_chain(reals, chain);
    const int rank = numbers[ENERGY] == KL_TO_TEACHER ? 2 : 1;
    for (int64_t l = 0; l < layers; ++l) {
      weights_of[l] = arrays == layers ? of_chain(weights[l], chain) : (float *)of_chain(weights[0], chain) + starts[l];
      outputs_of[l] = of_chain(outputs[l], chain);
    }
    Network net = {
        .layers = layers,
        .samples = args[INPUTS]->dims[args[INPUTS]->rank - 1],
        .sizes = sizes,
        .starts = starts,
        .inputs = of_chain(inputs, chain),
        .targets = of_chain(operand(args[TARGETS], rank, 4, scalars), chain),
        .mask = of_chain(mask, chain),
        .weights = weights_of,
        .outputs = outputs_of,
        .activation = numbers[ACTIVATION],
        .energy = numbers[ENERGY],
        .scale = real->scale,
        .smoothing = real->smoothing,
    };
    const Move move = {numbers[PRUNED], numbers[GROWN], real->nudge};
    if (!settle_one(&net, move, real, (int32_t *)rets[ACCEPTED]->data + chain, (float *)rets[NEW_ENERGY]->data + chain))
      return failure(frame, "no memory for a proposal");
  }
  return NULL;
}

/* The vector instructions in use. */
const char *vectors(void) {
#if defined(__AVX512F__)
  return "AVX-512";
#elif defined(__AVX2__) && defined(__FMA__)
  return "AVX2";
#elif defined(__AVX__)
  return "AVX";
#elif defined(__SSE__)
  return "SSE";
#elif defined(__ARM_NEON)
  return "NEON";
#else
  return "plain C";
#endif
}
