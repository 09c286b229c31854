"""Exports a pruned network as C99 source code: constant tables, no allocation, no library except libm.

Each layer is stored in the form that takes the fewest bytes: dense; rows of kept branches with their inputs as
8-bit steps or 16-bit numbers; one bit per branch; kept branches sorted by value (CER and CSER, Wiedemann et al.
2020); or, in the format 'c_packed', which takes less flash and more time, the Rice code of a packed file. Weights
are float32 or codes.
"""

import math
from collections.abc import Mapping, Sequence
from string import Template
from typing import NamedTuple

import numpy as np

from sa_jax.export.cleanup import Cleaned, predict
from sa_jax.export.packed import bfloat16_bits, pack_codes, rice
from sa_jax.export.quantization import GROUP_WEIGHTS, Quantized, QuantizedLayer, quantize, simulate
from sa_jax.types import InputError

# Names of the files. The last two are written if the inputs are images.
NAMES = ("network.h", "network.c", "test.c", "classify.c", "example.pgm")
# Number of golden vectors of the self-test, and the tolerance of its logits, relative to the largest one.
GOLDEN, TOLERANCE = 8, 1e-5
# The fast forms, of equal size the faster one first; and the smallest form.
FORMS = ("dense", "columns16", "steps8", "cer", "cser", "bitmask")
PACKED_FORMS = ("rice",)
ACTIVATIONS = {
    "relu": "x > 0.0f ? x : 0.0f",
    "tanh": "tanhf(x)",
    "gelu": "0.5f * x * (1.0f + tanhf(0.79788456f * (x + 0.044715f * x * x * x)))",
}
# C functions that sum the rows of each form; `_functions` fills in the types of a layer's weights and tables.
# This part is for CER and CSER: inputs that share a code are summed, and multiplied once.
PART = """            float part = 0.0f;
            const float *at = x;
            unsigned n = *counts++;
            w.served += n;
            for (; n > 0; n--) {
                while (*steps == 255) { at += 255; steps++; }
                at += *steps++;
                part += *at;
            }
            sum += $value * part;
"""
FUNCTIONS = {
    "dense": """static void $name(const float *x, float *y, long inputs, long outputs, $weights) {
    $declare
    for (long o = 0; o < outputs; o++) {
        float sum = 0.0f;
        $begin
        for (long i = 0; i < inputs; i++) sum += $next * x[i];
        y[o] += sum;
    }
}
""",
    "steps8": """/* Steps from one kept input to the next; 255 steps on without a weight. */
static void $name(const float *x, float *y, long outputs, const $count *counts, const uint8_t *steps, $weights) {
    $declare
    for (long o = 0; o < outputs; o++) {
        float sum = 0.0f, other = 0.0f, swapped;
        const float *at = x;
        $begin
        for (unsigned n = counts[o]; n > 0; n--) {
            while (*steps == 255) { at += 255; steps++; }
            at += *steps++;
            swapped = sum + $next * *at;
            sum = other;
            other = swapped;
        }
        y[o] += sum + other;
    }
}
""",
    "columns16": """static void $name(const float *x, float *y, long outputs, const $count *counts,
                 const uint16_t *columns, $weights) {
    $declare
    for (long o = 0; o < outputs; o++) {
        float sum = 0.0f, other = 0.0f, swapped;
        $begin
        for (unsigned n = counts[o]; n > 0; n--) {
            swapped = sum + $next * x[*columns++];
            sum = other;
            other = swapped;
        }
        y[o] += sum + other;
    }
}
""",
    "bitmask": """/* One bit for each branch, row by row, the lowest of a byte first. */
static void $name(const float *x, float *y, long inputs, long outputs, const uint8_t *bits, $weights) {
    long branch = 0;
    $declare
    for (long o = 0; o < outputs; o++) {
        float sum = 0.0f;
        $begin
        for (long i = 0; i < inputs; i++, branch++)
            if (bits[branch >> 3] >> (branch & 7) & 1) sum += $next * x[i];
        y[o] += sum;
    }
}
""",
    "cer": """/* For each row and each code how many branches have it, and the steps from one to the next. */
static void $name(const float *x, float *y, long outputs, const $count *counts, const uint8_t *steps,
                 const uint16_t *scales) {
    $declare
    for (long o = 0; o < outputs; o++) {
        float sum = 0.0f;
        $begin
        for (int code = 0; code < $codes; code++) {
$part        }
        y[o] += sum;
    }
}
""",
    "cser": """/* For each row how many codes it has, which, and the steps from one branch of each to the next. */
static void $name(const float *x, float *y, long outputs, const uint16_t *parts, const uint8_t *codes,
                 const $count *counts, const uint8_t *steps, const uint16_t *scales) {
    $declare
    for (long o = 0; o < outputs; o++) {
        float sum = 0.0f;
        $begin
        for (unsigned p = parts[o]; p > 0; p--) {
            int code = *codes++;
$part        }
        y[o] += sum;
    }
}
""",
    "rice": """/* Gaps between kept (or pruned) branches, by rows: a quotient in zeros, a one, the remainder. */
static void $name(const float *x, float *y, long inputs, long outputs, int shift, int of_pruned,
                 const uint8_t *gaps, $weights) {
    unsigned long bit = 0;
    long next = next_gap(gaps, &bit, shift);
    $declare
    for (long o = 0; o < outputs; o++) {
        float sum = 0.0f;
        $begin
        if (of_pruned) {
            for (long i = 0; i < inputs; i++) {
                if (i == next) next += 1 + next_gap(gaps, &bit, shift);
                else sum += $next * x[i];
            }
        } else {
            while (next < inputs) {
                sum += $next * x[next];
                next += 1 + next_gap(gaps, &bit, shift);
            }
        }
        next -= inputs;
        y[o] += sum;
    }
}
""",
}
GAPS = """static long next_gap(const uint8_t *gaps, unsigned long *bit, int shift) {
    long gap = 0;
    for (; !(gaps[*bit >> 3] >> (*bit & 7) & 1); ++*bit) gap++;
    ++*bit;
    gap <<= shift;
    for (int i = 0; i < shift; i++, ++*bit) gap |= (long)(gaps[*bit >> 3] >> (*bit & 7) & 1) << i;
    return gap;
}
"""
BFLOAT16 = """static float of_bfloat16(uint16_t half) {
    uint32_t bits = (uint32_t)half << 16;
    float value;
    memcpy(&value, &bits, sizeof value);
    return value;
}
"""
# Weights of 1 to 4 bits. A row begins with new scales if enough weights have used the previous ones.
MULTIBIT = """typedef struct {
    const uint8_t *codes;
    const uint16_t *scales;
    unsigned long at, served;
    float value[$codes];
} weights$bits;

static void begin_row$bits(weights$bits *w) {
    if (w->served < $group) return;
    w->served = 0;
    for (int code = 0; code < $codes; code++) {
        w->value[code] = 0.0f;
        for (int bit = 0; bit < $bits; bit++) {
            float scale = of_bfloat16(w->scales[bit]);
            w->value[code] += code >> bit & 1 ? scale : -scale;
        }
    }
    w->scales += $bits;
}
"""
NEXT_MULTIBIT = """static float next_weight$bits(weights$bits *w) {
    unsigned long bit = w->at++ * $bits;
    unsigned code = w->codes[bit >> 3];
    if (8 % $bits) code |= (unsigned)w->codes[(bit >> 3) + 1] << 8;
    w->served++;
    return w->value[code >> (bit & 7) & ($codes - 1)];
}
"""
AFFINE = """typedef struct {
    const uint8_t *codes;
    const uint16_t *scales;
    long at, served;
    float lowest, step;
} weights8;

static void begin_row8(weights8 *w) {
    if (w->served < $group) return;
    w->served = 0;
    w->lowest = of_bfloat16(*w->scales++);
    w->step = of_bfloat16(*w->scales++);
}
"""
NEXT_AFFINE = """static float next_weight8(weights8 *w) {
    w->served++;
    return w->lowest + w->step * (float)w->codes[w->at++];
}
"""
CLASSIFY = """/* Classifies a binary PGM image (P5, 8 bits), made by sa_jax: classify IMAGE.pgm */
#include "network.h"

#include <math.h>
#include <stdio.h>

/* The next number of a header, past spaces and comments; one character after it is read too. */
static long number(FILE *file) {
    int c = fgetc(file);
    long value = -1;
    while (c == ' ' || c == '\\t' || c == '\\r' || c == '\\n' || c == '#') {
        if (c == '#')
            while (c != '\\n' && c != EOF) c = fgetc(file);
        else c = fgetc(file);
    }
    for (; c >= '0' && c <= '9' && value < 100000; c = fgetc(file))
        value = 10 * (value < 0 ? 0 : value) + (c - '0');
    return value;
}

int main(int count, char **words) {
    static unsigned char pixels[NETWORK_INPUTS];
    static float input[NETWORK_INPUTS];
    float logits[NETWORK_OUTPUTS], total = 0.0f;
    int best = 0;
    FILE *file = count == 2 ? fopen(words[1], "rb") : NULL;
    if (!file) {
        fprintf(stderr, "usage: classify IMAGE.pgm, a file that can be read\\n");
        return 2;
    }
    int begins = fgetc(file) == 'P' && fgetc(file) == '5';
    long columns = number(file), rows = number(file), most = number(file);
    if (!begins || columns != NETWORK_COLUMNS || rows != NETWORK_ROWS || most != 255 ||
        fread(pixels, 1, NETWORK_INPUTS, file) != NETWORK_INPUTS) {
        fprintf(stderr, "%s is not a binary PGM of %d by %d pixels from 0 to 255\\n", words[1], NETWORK_COLUMNS,
                NETWORK_ROWS);
        fclose(file);
        return 2;
    }
    fclose(file);
    for (long i = 0; i < NETWORK_INPUTS; i++)
        input[i] = ((float)pixels[i] / 255.0f - NETWORK_INPUT_MEAN) / NETWORK_INPUT_STD;
    network_predict(input, logits);
    for (int o = 1; o < NETWORK_OUTPUTS; o++) best = logits[o] > logits[best] ? o : best;
    for (int o = 0; o < NETWORK_OUTPUTS; o++) total += expf(logits[o] - logits[best]);
    printf("class %d, probability %.2f\\n", best, (double)(1.0f / total));
    return 0;
}
"""


class Inputs(NamedTuple):
    """How the inputs of a network are made.

    Attributes:
      mean: the mean that is subtracted from inputs.
      std: the standard deviation that then divides them.
      image: an example image, uint8 `[rows, columns]`, if inputs are pixels divided by 255; else None.
    """

    mean: float
    std: float
    image: np.ndarray | None  # uint8 [rows, columns]


class Stored(NamedTuple):
    """One layer in one form.

    Attributes:
      form: name of the form, a key of `FUNCTIONS`.
      numbers: arguments of the C function before the tables.
      tables: arrays by name, in the order of the arguments.
      bits: bits per weight.
    """

    form: str
    numbers: tuple[int, ...]
    tables: dict[str, np.ndarray]
    bits: int

    @property
    def num_bytes(self) -> int:
        """Size of all tables."""
        return sum(array.nbytes for array in self.tables.values())


def stored(layer: QuantizedLayer, form: str) -> Stored | None:
    """Stores a layer in a form of `FUNCTIONS`; returns None if the form cannot hold it."""
    inputs, outputs = layer.mask.shape
    kept = layer.mask.T
    counts = kept.sum(1)
    scales = {"scales": bfloat16_bits(layer.scales)}
    if layer.bits == 32:
        weights = {"values": layer.codes}
    else:
        # One byte more, because codes of 3 bits are read two bytes at a time.
        packed = pack_codes(layer.codes, layer.bits) + b"\0" * (layer.bits < 8)
        weights = {"codes": np.frombuffer(packed, np.uint8)} | scales
    both = inputs, outputs
    if form == "dense":
        if layer.bits < 32:
            return Stored(form, both, weights, layer.bits) if kept.all() else None
        rows = np.zeros(kept.shape, np.float32)
        rows[kept] = layer.codes
        return Stored(form, both, {"values": rows.ravel()}, 32)
    if form == "bitmask":
        return Stored(form, both, {"bits": np.packbits(kept.ravel(), bitorder="little")} | weights, layer.bits)
    if form == "rice":
        coded = rice(layer.mask)
        gaps = {"gaps": np.frombuffer(coded.content, np.uint8)}
        return Stored(form, (*both, coded.shift, int(coded.of_pruned)), gaps | weights, layer.bits)
    if inputs >= 2**16:  # a row of all of them could not be counted in 16 bits
        return None
    tables = {"counts": _short(counts)}
    if form == "columns16":
        columns = {"columns": kept.nonzero()[1].astype(np.uint16)}
        return Stored(form, (outputs,), tables | columns | weights, layer.bits)
    if form == "steps8":
        steps = {"steps": _steps(np.flatnonzero(row) for row in kept)}
        return Stored(form, (outputs,), tables | steps | weights, layer.bits)
    if layer.bits == 32:
        return None
    of_code = np.full(kept.shape, -1)
    of_code[kept] = layer.codes
    parts = [[np.flatnonzero(row == code) for code in range(2**layer.bits)] for row in of_code]
    lengths = np.array([[len(part) for part in row] for row in parts], int).reshape(outputs, 2**layer.bits)
    steps = {"steps": _steps(part for row in parts for part in row)} | scales
    if form == "cer":
        return Stored(form, (outputs,), {"counts": _short(lengths.ravel())} | steps, layer.bits)
    segments = {"parts": (lengths > 0).sum(1).astype(np.uint16), "codes": lengths.nonzero()[1].astype(np.uint8)}
    return Stored(form, (outputs,), segments | {"counts": _short(lengths[lengths > 0])} | steps, layer.bits)


def _short(counts: np.ndarray) -> np.ndarray:
    return counts.astype(np.uint8 if counts.max(initial=0) < 256 else np.uint16)


def _steps(parts) -> np.ndarray:
    steps = []
    for columns in parts:
        for gap in np.diff(columns, prepend=0).tolist():
            steps += [255] * (gap // 255) + [gap % 255]
    return np.array(steps, np.uint8)


def smallest(layer: QuantizedLayer, forms: Sequence[str] = FORMS) -> Stored:
    """Stores a layer in the form that takes the fewest bytes; of equal forms, the first."""
    found = [one for form in forms if (one := stored(layer, form)) is not None]
    return min(found, key=lambda one: one.num_bytes)


def table_bytes(layer: QuantizedLayer, forms: Sequence[str] = FORMS) -> int:
    """Returns the bytes that the constant tables of a layer take, in the smallest of the forms."""
    return smallest(layer, forms).num_bytes + (4 if layer.bits == 32 else 2) * layer.mask.shape[1]


def files(
    network: Cleaned | Quantized, forms: Sequence[str] = FORMS, inputs: Inputs | None = None
) -> Mapping[str, bytes]:
    """Returns the files `network.h`, `network.c` and `test.c`, a self-test with its own `main`.

    Args:
      network: a network of float32 weights or of codes.
      forms: keys of `FUNCTIONS`; each layer takes the smallest of them.
      inputs: how inputs are made. With an image, there are two more files: `classify.c`, a program that classifies
        image files, and the image as `example.pgm`.

    Raises:
      InputError: the activation is not known in C; or weights, or logits of the self-test, that are not finite.
    """
    quantized = quantize(network, 32) if isinstance(network, Cleaned) else network
    if quantized.activation not in ACTIVATIONS:
        raise InputError(f"activation {quantized.activation!r} is not known in C; known: {', '.join(ACTIVATIONS)}")
    layers = [smallest(layer, forms) for layer in quantized.layers]
    features, outputs = quantized.layers[0].mask.shape[0], quantized.layers[-1].mask.shape[1]
    made = {
        "network.h": _header(features, outputs, stack_bytes(quantized), inputs),
        "network.c": _source(quantized, layers),
    }
    made["test.c"] = _test(simulate(quantized), features)
    files = {name: text.encode() for name, text in made.items()}
    if inputs is None or inputs.image is None:
        return files
    rows, columns = inputs.image.shape
    image = f"P5\n{columns} {rows}\n255\n".encode() + inputs.image.astype(np.uint8).tobytes()
    return files | {"classify.c": CLASSIFY.encode(), "example.pgm": image}


def stack_bytes(quantized: Quantized) -> int:
    """Returns the bytes of stack that the units between layers take while the network runs."""
    widths = [layer.mask.shape[1] for layer in quantized.layers]
    return 4 * sum(max(widths[start:-1:2], default=0) for start in (0, 1))


def _header(features: int, outputs: int, stack: int, inputs: Inputs | None) -> str:
    numbers = {"NETWORK_INPUTS": str(features), "NETWORK_OUTPUTS": str(outputs)}
    if inputs is not None:
        numbers |= {"NETWORK_INPUT_MEAN": _literal(float(np.float32(inputs.mean)))}
        numbers |= {"NETWORK_INPUT_STD": _literal(float(np.float32(inputs.std)))}
        if inputs.image is not None:
            rows, columns = inputs.image.shape
            numbers |= {"NETWORK_ROWS": str(rows), "NETWORK_COLUMNS": str(columns)}
    defined = "".join(f"#define {name} {value}\n" for name, value in numbers.items())
    return f"""/* A pruned network, made by sa_jax. */
#ifndef NETWORK_H
#define NETWORK_H

{defined}
#ifdef __cplusplus
extern "C" {{
#endif

/* Maps NETWORK_INPUTS inputs, standardised as in training, to NETWORK_OUTPUTS logits. The two must not overlap.
   Takes {stack:,} bytes of stack for the units between layers. */
void network_predict(const float *input, float *logits);

#ifdef __cplusplus
}}
#endif

#endif
"""


def _source(quantized: Quantized, layers: list[Stored]) -> str:
    widths = [layer.mask.shape[1] for layer in quantized.layers]
    bodies: dict[str, str] = {}
    tables, calls, at = [], [], "input"
    for number, (layer, one) in enumerate(zip(quantized.layers, layers, strict=True)):
        to = "logits" if number == len(layers) - 1 else f"units{number % 2}"
        arrays = {f"{name}{number}": array for name, array in one.tables.items()}
        bias = layer.bias if layer.bits == 32 else bfloat16_bits(layer.bias)
        tables += [_table(name, array) for name, array in (arrays | {f"bias{number}": bias}).items()]
        read = f"bias{number}[o]" if layer.bits == 32 else f"of_bfloat16(bias{number}[o])"
        calls.append(f"    for (long o = 0; o < {layer.mask.shape[1]}; o++) {to}[o] = {read};")
        function = _functions(one, bodies)
        calls.append(f"    {function}({at}, {to}, {', '.join(map(str, (*one.numbers, *arrays)))});")
        if to != "logits":
            calls.append(f"    activate({to}, {layer.mask.shape[1]});")
        at = to
    buffers = [f"    float units{i}[{max(1, *widths[i:-1:2])}];" for i in (0, 1) if widths[i:-1:2]]
    activate = f"""static void activate(float *units, long count) {{
    for (long i = 0; i < count; i++) {{
        float x = units[i];
        units[i] = {ACTIVATIONS[quantized.activation]};
    }}
}}
"""
    uses = ["math.h", "stdint.h"] + (["string.h"] if "bfloat16" in bodies else [])
    includes = "".join(f"#include <{name}>\n" for name in uses)
    parts = [f'/* A pruned network, made by sa_jax. */\n#include "network.h"\n\n{includes}']
    parts += tables + list(bodies.values()) + ([activate] if len(layers) > 1 else [])
    body = "\n".join(buffers + calls)
    parts.append(f"void network_predict(const float *input, float *logits) {{\n{body}\n}}\n")
    return "\n".join(parts)


def _functions(one: Stored, bodies: dict[str, str]) -> str:
    """Adds the C functions that a layer needs to `bodies`, and returns the name of the layer's function."""
    count = (
        {"uint8": "uint8_t", "uint16": "uint16_t"}[str(one.tables["counts"].dtype)]
        if "counts" in one.tables
        else ""
    )
    name = "_".join([one.form, *([f"bits{one.bits}"] if one.bits < 32 else []), *([count[:-2]] if count else [])])
    bits, by_code = str(one.bits), one.form in ("cer", "cser")
    words = {"name": name, "count": count, "bits": bits, "codes": str(2**one.bits), "group": str(GROUP_WEIGHTS)}
    if one.form == "rice":
        bodies["gaps"] = GAPS
    if one.bits == 32:
        words |= {"weights": "const float *values", "declare": "", "begin": "", "next": "*values++"}
    else:
        affine = one.bits == 8
        bodies["bfloat16"] = BFLOAT16
        bodies[f"begin{bits}"] = _filled(AFFINE if affine else MULTIBIT, words)
        if not by_code:
            bodies[f"next{bits}"] = _filled(NEXT_AFFINE if affine else NEXT_MULTIBIT, words)
        codes, values = "0" if by_code else "codes", "0.0f, 0.0f" if affine else "{0.0f}"
        words |= {
            "weights": "const uint8_t *codes, const uint16_t *scales",
            "declare": f"weights{bits} w = {{{codes}, scales, 0, {GROUP_WEIGHTS}, {values}}};",
            "begin": f"begin_row{bits}(&w);",
            "next": f"next_weight{bits}(&w)",
            "value": "(w.lowest + w.step * (float)code)" if affine else "w.value[code]",
        }
    bodies[name] = _filled(FUNCTIONS[one.form], words)
    return name


def _filled(template: str, words: Mapping[str, str]) -> str:
    filled = Template(template.replace("$part", PART)).substitute(words)
    return "".join(line for line in filled.splitlines(keepends=True) if line.strip())


def _table(name: str, array: np.ndarray) -> str:
    kinds = {"float32": "float", "uint8": "uint8_t", "uint16": "uint16_t"}
    written = [_literal(value) for value in array.tolist()] or ["0"]
    lines = [", ".join(written[i : i + 12]) for i in range(0, len(written), 12)]
    body = ",\n    ".join(lines)
    return f"static const {kinds[str(array.dtype)]} {name}[{len(written)}] = {{\n    {body}}};\n"


def _literal(value: float) -> str:
    if isinstance(value, int):
        return str(value)
    if not math.isfinite(value):
        raise InputError("the C code would hold NaN or infinite values: the network's weights are too large")
    digits = f"{value:.9g}"  # 9 digits distinguish all float32 values
    return digits + ("f" if "." in digits or "e" in digits else ".0f")


def _test(cleaned: Cleaned, inputs: int) -> str:
    x = np.random.default_rng(0).normal(size=(GOLDEN, inputs)).astype(np.float32)
    logits = predict(cleaned, x)
    return f"""/* The self-test of a pruned network, made by sa_jax: fails if the logits are wrong. */
#include "network.h"

#include <math.h>
#include <stdio.h>

{_table("inputs", x.ravel())}
{_table("expected", logits.ravel())}
int main(void) {{
    float off = 0.0f, largest = 1e-30f, logits[NETWORK_OUTPUTS];
    for (long sample = 0; sample < {GOLDEN}; sample++) {{
        const float *wanted = expected + sample * NETWORK_OUTPUTS;
        network_predict(inputs + sample * NETWORK_INPUTS, logits);
        for (long o = 0; o < NETWORK_OUTPUTS; o++) {{
            if (!isfinite(logits[o])) {{
                printf("sample %ld has a logit that is not finite\\n", sample);
                return 1;
            }}
            largest = fmaxf(largest, fabsf(wanted[o]));
            off = fmaxf(off, fabsf(logits[o] - wanted[o]));
        }}
    }}
    printf("{GOLDEN} samples, logits off by at most %.2g of the largest\\n", (double)(off / largest));
    return off <= {TOLERANCE:g}f * largest ? 0 : 1;
}}
"""
