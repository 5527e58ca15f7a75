// The inner loops of the CPU operators, as always-inlined templates over the vector size, so that each instruction set
// compiles them with its own registers (see isa.h). Nothing here allocates or knows about tensors.
//
// Arithmetic is in `Acc` (float for float and the half types, double for double). Values, weights and results are staged
// in `Acc`, tile by tile, in scratch that stays in the first- and second-level cache.
#pragma once

#include <cstdint>
#include <cstring>
#include <type_traits>

#include "plan.h"

#define MMEXT_INLINE __attribute__((always_inline)) inline
#define MMEXT_INLINE_LAMBDA __attribute__((always_inline))

namespace mmext::cpu {

constexpr int kRows = 4;        // output rows of a tile: they share the loads of the values
constexpr int kMaxBytes = 64;   // the longest vector of any instruction set

// Channels of an aggregation tile (they share the loads of the weights) and slots of a correlation tile: what fills, with
// kRows, the 32 registers of AVX-512 or the 16 of AVX2 and SSE2.
constexpr int columns_of_tile(int bytes) { return bytes == 64 ? 4 : 2; }

template <typename Acc, int Bytes>
struct Vector {
  typedef Acc type __attribute__((vector_size(Bytes), aligned(sizeof(Acc)), may_alias));
  using Int = std::conditional_t<sizeof(Acc) == 4, int32_t, int64_t>;
  typedef Int mask __attribute__((vector_size(Bytes), aligned(sizeof(Acc)), may_alias));
  static constexpr int lanes = Bytes / sizeof(Acc);
};

// A source row and, for each output row of the tile, the tap that reaches it (-1: none).
struct SourceRow {
  int64_t row;
  int64_t tap[kRows];
  unsigned mask;
};

// Output row `t` of the tile meets source row `source` of the tile in tap `tap`.
struct Meeting {
  int64_t tap;
  int64_t source;
  int t;
};

struct Tile {
  int64_t rows[kRows];   // output rows
  int count;
  const SourceRow* sources;
  int64_t n_sources;
  const Meeting* meetings;   // by tap: that is the order in which their weights lie in memory
  int64_t n_meetings;
};

// What a 16-bit type is, so that it can be converted by arithmetic on its bits, which vectorises; its own conversion does not.
enum class Bits { other, half, bfloat16 };
template <typename T>
constexpr Bits bits_of = Bits::other;
typedef uint16_t Word __attribute__((may_alias));

template <typename To, typename From>
MMEXT_INLINE To as(From from) {
  To to;
  static_assert(sizeof(to) == sizeof(from));
  std::memcpy(&to, &from, sizeof(to));
  return to;
}

// All ones if a < b, else zero; both below 2^31. (Conditions would keep the loops below from being vectorised.)
MMEXT_INLINE uint32_t below(uint32_t a, uint32_t b) { return static_cast<uint32_t>(static_cast<int32_t>(a - b) >> 31); }

MMEXT_INLINE float widen_half(uint16_t h) {
  // Exponents are 112 apart. The product makes subnormals right; infinities and NaN keep their exponent of ones.
  const uint32_t a = h & 0x7fffu;
  const float magnitude = as<float>(a << 13) * as<float>(uint32_t((127 + 112) << 23));
  return as<float>(as<uint32_t>(magnitude) | (below(0x7bff, a) & 0x7f800000u) | uint32_t(h & 0x8000u) << 16);
}

MMEXT_INLINE uint16_t narrow_half(float f) {
  const uint32_t u = as<uint32_t>(f), a = u & 0x7fffffffu;
  const uint32_t normal = (a - (112u << 23) + 0xfff + (a >> 13 & 1)) >> 13;             // rounds to even
  const uint32_t subnormal = as<uint32_t>(as<float>(a) + 0.5f) - 0x3f000000u;            // the sum rounds
  const uint32_t special = 0x7c00u | (below(0x7f800000u, a) & 0x200u);
  const uint32_t small = below(a, 0x38800000u), finite = below(a, 0x47800000u);
  const uint32_t rounded = (subnormal & small) | (normal & ~small);
  return static_cast<uint16_t>((rounded & finite) | (special & ~finite) | (u >> 16 & 0x8000u));
}

MMEXT_INLINE uint16_t narrow_bfloat16(float f) {
  const uint32_t u = as<uint32_t>(f), nan = below(0x7f800000u, u & 0x7fffffffu);
  return static_cast<uint16_t>((((u + 0x7fff + (u >> 16 & 1)) >> 16) & ~nan) | (0x7fc0u & nan));
}

// Copy `size` elements, converting.
template <typename To, typename From>
MMEXT_INLINE void convert(To* to, const From* from, int64_t size) {
  if constexpr (std::is_same_v<To, From>) {
    std::memcpy(to, from, size * sizeof(To));
  } else if constexpr (bits_of<From> != Bits::other) {
    const auto* bits = reinterpret_cast<const Word*>(from);
    for (int64_t i = 0; i < size; ++i)
      to[i] = bits_of<From> == Bits::half ? widen_half(bits[i]) : as<float>(uint32_t(bits[i]) << 16);
  } else if constexpr (bits_of<To> != Bits::other) {
    auto* bits = reinterpret_cast<Word*>(to);
    for (int64_t i = 0; i < size; ++i) bits[i] = bits_of<To> == Bits::half ? narrow_half(from[i]) : narrow_bfloat16(from[i]);
  } else {
    for (int64_t i = 0; i < size; ++i) to[i] = static_cast<To>(from[i]);
  }
}

// Windows of this table are the masks "from lane low on" and "up to lane high". (Comparing vectors would do, but GCC 12 takes
// 64-byte comparisons apart.)
template <typename Int, int Lanes>
struct MaskTable {
  Int at[3 * Lanes];
  constexpr MaskTable() : at() {
    for (int l = Lanes; l < 2 * Lanes; ++l) at[l] = -1;
  }
};

// One vector of which the lanes [low, high) exist, the others become zero. Reads the whole vector where `memory` has it.
template <int Bytes, typename Acc, typename T>
MMEXT_INLINE void load_lanes(Acc* to, const T* from, int64_t low, int64_t high, const T* memory, const T* memory_end) {
  using V = Vector<Acc, Bytes>;
  constexpr int64_t lanes = V::lanes;
  static constexpr MaskTable<typename V::Int, V::lanes> table{};
  low = low < 0 ? 0 : low > lanes ? lanes : low;
  high = high < 0 ? 0 : high > lanes ? lanes : high;
  if (from >= memory && from + lanes <= memory_end) {
    convert(to, from, lanes);
    auto* cell = reinterpret_cast<typename V::mask*>(to);
    *cell = *cell & *reinterpret_cast<const typename V::mask*>(table.at + lanes - low) &
            *reinterpret_cast<const typename V::mask*>(table.at + 2 * lanes - high);
  } else {
    for (int64_t l = 0; l < lanes; ++l) to[l] = l >= low && l < high ? static_cast<Acc>(from[l]) : Acc(0);
  }
}

// Runs are written as whole vectors, and each begins by overwriting what the one before it wrote too much. May so write up to a
// vector beyond the row: rows are staged in their order, and the scratch goes on after the last one.
template <int Bytes, typename Acc, typename T>
MMEXT_INLINE void stage_row(Acc* to, const T* row, const T* memory_end, const Columns& c) {
  using V = typename Vector<Acc, Bytes>::type;
  constexpr int lanes = Vector<Acc, Bytes>::lanes;
  if (c.runs.empty()) {
    const int64_t* source = c.source.data();
    for (int64_t e = 0; e < c.pitch; ++e) to[e] = source[e] >= 0 ? static_cast<Acc>(row[source[e]]) : Acc(0);
  }
  for (const Run& run : c.runs) {
    Acc* const begin = to + run.to;
    if (run.repeats) {
      const V all = V{} + (run.from >= 0 ? static_cast<Acc>(row[run.from]) : Acc(0));
      for (int64_t e = 0; e < run.size; e += lanes) *reinterpret_cast<V*>(begin + e) = all;
      continue;
    }
    const T* const from = row + run.from;
    int64_t e = 0;
    for (; e < run.size && from + e + lanes <= memory_end; e += lanes) convert(begin + e, from + e, lanes);
    for (; e < run.size; ++e) begin[e] = static_cast<Acc>(from[e]);
  }
}

// Where a tile finds its weights: slot q of the meeting of source row e and output row t begins at row[e][t] + slot[q].
template <typename Acc>
struct Weights {
  const Acc* const (*row)[kRows];
  const int64_t* slot;
};

// Weights lie in one plane per tap, queries in one per channel: too many streams for the hardware to foresee. So the vector
// that is `ahead` is asked for while this one is used; both ends of it, since it may lie across two cache lines.
template <typename T>
MMEXT_INLINE void prefetch(const T* at, int64_t ahead) {
  const auto address = reinterpret_cast<uintptr_t>(at) + ahead * sizeof(T);   // a number: it may lie outside of the array
  __builtin_prefetch(reinterpret_cast<const void*>(address));
  __builtin_prefetch(reinterpret_cast<const void*>(address + kMaxBytes - 1));
}

// One source row times the slots of one row of taps, for the output rows in Mask.
template <unsigned Mask, int Bytes, int R, typename Acc>
MMEXT_INLINE void aggregate_row(typename Vector<Acc, Bytes>::type (&acc)[kRows][R], const Acc* values, int64_t channel_pitch,
                                const int64_t* offset, int64_t slots, const Acc* const* weights, const int64_t* slot,
                                int64_t ahead) {
  using Vec = typename Vector<Acc, Bytes>::type;
  for (int64_t q = 0; q < slots; ++q) {
    const Acc* at = values + offset[q];
    Vec v[R];
#pragma GCC unroll 8
    for (int r = 0; r < R; ++r) v[r] = *reinterpret_cast<const Vec*>(at + r * channel_pitch);
#pragma GCC unroll 8
    for (int t = 0; t < kRows; ++t)
      if (Mask >> t & 1) {
        const Acc* at_weight = weights[t] + slot[q];
        const Vec w = *reinterpret_cast<const Vec*>(at_weight);
        if (ahead) prefetch(at_weight, ahead);
#pragma GCC unroll 8
        for (int r = 0; r < R; ++r) acc[t][r] += w * v[r];
      }
  }
}

template <int Bytes, int R, typename Acc>
MMEXT_INLINE void aggregate_tile(typename Vector<Acc, Bytes>::type (&acc)[kRows][R], const Tile& tile, const Columns& columns,
                                 const Acc* values, int64_t channel_pitch, const Weights<Acc>& weights, int64_t ahead) {
  const int64_t slots = columns.slots();
  const int64_t* offset = columns.offset.data();
  for (int64_t e = 0; e < tile.n_sources; ++e) {
    const Acc* v = values + tile.sources[e].row * columns.pitch;
    const Acc* const* w = weights.row[e];
#define MMEXT_CASE(M) \
  case M:             \
    aggregate_row<M, Bytes, R>(acc, v, channel_pitch, offset, slots, w, weights.slot, ahead); \
    break;
    switch (tile.sources[e].mask) {
      MMEXT_CASE(1) MMEXT_CASE(2) MMEXT_CASE(3) MMEXT_CASE(4) MMEXT_CASE(5) MMEXT_CASE(6) MMEXT_CASE(7) MMEXT_CASE(8)
      MMEXT_CASE(9) MMEXT_CASE(10) MMEXT_CASE(11) MMEXT_CASE(12) MMEXT_CASE(13) MMEXT_CASE(14) MMEXT_CASE(15)
    }
#undef MMEXT_CASE
  }
}

// Everything `aggregate` and its adjoint need for one band of output rows of one (image, group, channel block).
template <typename T, typename Acc>
struct AggregateBand {
  const T *source, *source_end;   // plane of the first channel, and the end of all
  const T* weight;          // [tap][row][column] of the image and group
  const T *memory, *memory_end;   // all the weights there are
  T* out;                   // plane of the first channel
  int64_t channels, source_stride, out_stride;   // channels of the block and the distance of their planes
  int64_t source_width, out_width;
  int64_t weight_height, weight_width, kernel_width;
  bool adjoint;             // the weight row is the source row, not the output row
  const Columns* columns;
  const Tile* tiles;
  int64_t n_tiles;
  const int64_t* rows;      // source rows to stage; SourceRow::row is a place in this list
  int64_t n_rows;
  Acc* values;              // scratch [channel][row][pitch]
  Acc* weights;             // scratch [source row][slot][output row][lane]
  const Acc* (*weight_rows)[kRows];   // scratch, one entry per source row of a tile
  int64_t *direct_slots, *staged_slots;   // scratch, one entry per slot
};

// The weights of slot column 0 at output row t of the tile, in the row of taps through which `source` meets it.
template <typename T, typename Acc>
MMEXT_INLINE const T* weight_row(const AggregateBand<T, Acc>& b, const Tile& tile, const Meeting& m) {
  const int64_t row = b.adjoint ? b.rows[tile.sources[m.source].row] : tile.rows[m.t];
  return b.weight + (m.tap * b.kernel_width * b.weight_height + row) * b.weight_width;
}

// Copy the weights of one vector of output columns side by side: where they need converting or cutting, or lie so far apart
// that they evict each other.
template <int Bytes, typename T, typename Acc>
MMEXT_INLINE Weights<Acc> stage_weights(const AggregateBand<T, Acc>& b, const Tile& tile, int64_t x, int64_t n, int64_t next,
                                        bool inside) {
  constexpr int lanes = Vector<Acc, Bytes>::lanes;
  const Columns& c = *b.columns;
  const int64_t slots = c.slots(), regular = c.regular(), plane = b.weight_height * b.weight_width;
  for (int64_t m = 0; m < tile.n_meetings; ++m) {
    const Meeting& meeting = tile.meetings[m];
    const T* row = weight_row(b, tile, meeting);
    Acc* to = b.weights + (meeting.source * slots * kRows + meeting.t) * lanes;
    b.weight_rows[meeting.source][meeting.t] = to;
    for (int64_t q = 0; q < slots; ++q, to += kRows * lanes) {
      if (q >= regular) {
        const int64_t* const place = c.place.data() + (q - regular) * c.pitch_of_places + x;
        for (int64_t l = 0; l < lanes; ++l) to[l] = place[l] >= 0 ? static_cast<Acc>(row[place[l]]) : Acc(0);
        continue;
      }
      const int64_t column = x + c.delta[q];
      const T* from = row + c.tap[q] * plane + column;
      prefetch(from, next);
      if (inside) {
        convert(to, from, lanes);
      } else {
        const int64_t end = c.high - column;
        load_lanes<Bytes>(to, from, c.low - column, end < n ? end : n, b.memory, b.memory_end);
      }
    }
  }
  return {b.weight_rows, b.staged_slots};
}

template <int Bytes, typename T, typename Acc>
MMEXT_INLINE Weights<Acc> find_weights(const AggregateBand<T, Acc>& b, const Tile& tile, int64_t x, int64_t n, int64_t next) {
  constexpr int lanes = Vector<Acc, Bytes>::lanes;
  const Columns& c = *b.columns;
  const bool inside =
      c.place.empty() && n == lanes && x + c.least_delta >= c.low && x + c.most_delta + lanes <= c.high;
  if constexpr (std::is_same_v<T, Acc>) {
    const bool collide = b.weight_height * b.weight_width * sizeof(T) % 1024 == 0 && b.channels > columns_of_tile(Bytes);
    if (inside && !collide) {
      for (int64_t m = 0; m < tile.n_meetings; ++m)
        b.weight_rows[tile.meetings[m].source][tile.meetings[m].t] = weight_row(b, tile, tile.meetings[m]) + x;
      return {b.weight_rows, b.direct_slots};
    }
  }
  return stage_weights<Bytes>(b, tile, x, n, next, inside);
}

template <int Bytes, int R, typename T, typename Acc>
MMEXT_INLINE void aggregate_channels(const AggregateBand<T, Acc>& b, const Tile& tile, const Weights<Acc>& weights,
                                     int64_t channel, int64_t x, int64_t n, int64_t ahead) {
  constexpr int lanes = Vector<Acc, Bytes>::lanes;
  const Columns& c = *b.columns;
  const int64_t channel_pitch = b.n_rows * c.pitch;
  using Vec = typename Vector<Acc, Bytes>::type;
  Vec acc[kRows][R] = {};
  aggregate_tile<Bytes, R>(acc, tile, c, b.values + channel * channel_pitch + x, channel_pitch, weights, ahead);
#pragma GCC unroll 8
  for (int t = 0; t < kRows; ++t) {
    if (t == tile.count) break;
    T* row = b.out + channel * b.out_stride + tile.rows[t] * b.out_width + c.start + x * c.step;
#pragma GCC unroll 8
    for (int r = 0; r < R; ++r, row += b.out_stride) {
      if (n == lanes && c.step == 1) {
        if constexpr (std::is_same_v<T, Acc>)
          *reinterpret_cast<Vec*>(row) = acc[t][r];
        else
          convert(row, reinterpret_cast<const Acc*>(&acc[t][r]), lanes);
      } else {
        alignas(kMaxBytes) Acc partial[lanes];
        *reinterpret_cast<Vec*>(partial) = acc[t][r];
        for (int64_t l = 0; l < n; ++l) row[l * c.step] = static_cast<T>(partial[l]);
      }
    }
  }
}

template <int Bytes, typename T, typename Acc>
MMEXT_INLINE void aggregate_band(const AggregateBand<T, Acc>& b) {
  constexpr int lanes = Vector<Acc, Bytes>::lanes;
  const Columns& c = *b.columns;
  for (int64_t j = 0; j < b.channels; ++j)
    for (int64_t i = 0; i < b.n_rows; ++i)
      stage_row<Bytes>(b.values + (j * b.n_rows + i) * c.pitch, b.source + j * b.source_stride + b.rows[i] * b.source_width,
                       b.source_end, c);
  constexpr int width = columns_of_tile(Bytes);
  for (int64_t q = 0; q < c.slots(); ++q) b.staged_slots[q] = q * kRows * lanes;
  for (int64_t q = 0; q < c.regular(); ++q) b.direct_slots[q] = c.tap[q] * b.weight_height * b.weight_width + c.delta[q];
  for (int64_t k = 0; k < b.n_tiles; ++k)
    for (int64_t begin = 0; begin < c.count; begin += lanes) {
      // The last vector overlaps the one before it rather than being cut.
      const int64_t x = begin + lanes <= c.count || c.count < lanes ? begin : c.count - lanes;
      const int64_t n = c.count - x < lanes ? c.count - x : lanes;
      const int64_t next = begin + lanes < c.count ? lanes : kRows * b.weight_width - x;
      const Weights<Acc> w = find_weights<Bytes>(b, b.tiles[k], x, n, next);
      const int64_t ahead = w.slot == b.direct_slots ? next : 0;   // staged weights were fetched as they were staged
      int64_t j = 0;
      for (; j + width <= b.channels; j += width) aggregate_channels<Bytes, width>(b, b.tiles[k], w, j, x, n, j == 0 ? ahead : 0);
      for (; j + 2 <= b.channels; j += 2) aggregate_channels<Bytes, 2>(b, b.tiles[k], w, j, x, n, j == 0 ? ahead : 0);
      if (j < b.channels) aggregate_channels<Bytes, 1>(b, b.tiles[k], w, j, x, n, j == 0 ? ahead : 0);
    }
}

// Everything `correlate` needs for one band of output rows of one (image, group), for a block of its channels.
template <typename T, typename Acc>
struct CorrelateBand {
  const T *key, *key_end;   // plane of the first channel, and the end of all
  const T* query;
  const T *memory, *memory_end;   // all the queries there are
  int64_t channels, key_stride, query_stride;
  int64_t key_width, out_width;
  const Columns* columns;
  const Tile* tiles;
  int64_t n_tiles;
  const int64_t* rows;
  int64_t n_rows;
  Acc* values;              // scratch [channel][row][pitch]
  Acc* queries;             // scratch [channel][output row][lane]
  Acc* out;                 // element (tap, row, column) at tap * out_tap + row * out_width + column
  int64_t out_tap, kernel_width;
  bool compact;             // out has the rows of one tile only, numbered within it, not all output rows
  bool accumulate;          // not the first block of channels: add to what is there
};

// N output rows (whose vectors begin at `q`) times the slots [slot, slot + S) of one source row, summed over the channels.
template <int Bytes, int N, int S, typename T, typename Acc>
MMEXT_INLINE void correlate_slots(const CorrelateBand<T, Acc>& b, const Acc* const* q, const Acc* values, const int64_t* offset,
                                  Acc* const* to, int64_t n) {
  using Vec = typename Vector<Acc, Bytes>::type;
  constexpr int lanes = Vector<Acc, Bytes>::lanes;
  const int64_t value_pitch = b.n_rows * b.columns->pitch;
  Vec acc[N][S] = {};
  const Acc *qp[N], *vp[S];
  for (int i = 0; i < N; ++i) qp[i] = q[i];
  for (int s = 0; s < S; ++s) vp[s] = values + offset[s];
  for (int64_t j = 0; j < b.channels; ++j) {
    Vec queries[N];
#pragma GCC unroll 8
    for (int i = 0; i < N; ++i) queries[i] = *reinterpret_cast<const Vec*>(qp[i] + j * kRows * lanes);
#pragma GCC unroll 8
    for (int s = 0; s < S; ++s) {
      const Vec v = *reinterpret_cast<const Vec*>(vp[s] + j * value_pitch);
#pragma GCC unroll 8
      for (int i = 0; i < N; ++i) acc[i][s] += queries[i] * v;
    }
  }
#pragma GCC unroll 8
  for (int i = 0; i < N; ++i)
#pragma GCC unroll 8
    for (int s = 0; s < S; ++s) {
      Acc* at = to[i] + s * b.out_tap;
      if (n == lanes) {
        Vec* cell = reinterpret_cast<Vec*>(at);
        *cell = b.accumulate ? *cell + acc[i][s] : acc[i][s];
      } else {
        alignas(kMaxBytes) Acc partial[lanes];
        *reinterpret_cast<Vec*>(partial) = acc[i][s];
        for (int64_t l = 0; l < n; ++l) at[l] = b.accumulate ? at[l] + partial[l] : partial[l];
      }
    }
}

template <int Bytes, int N, typename T, typename Acc>
MMEXT_INLINE void correlate_row(const CorrelateBand<T, Acc>& b, const Acc* const* q, const Acc* values, Acc* const* to, int64_t n) {
  const int64_t slots = b.columns->slots();
  const int64_t* offset = b.columns->offset.data();
  constexpr int width = columns_of_tile(Bytes);
  Acc* at[N];
  for (int64_t s = 0; s < slots;) {
    for (int i = 0; i < N; ++i) at[i] = to[i] + s * b.out_tap;
    if (slots - s >= width) {
      correlate_slots<Bytes, N, width>(b, q, values, offset + s, at, n);
      s += width;
    } else if (slots - s >= 2) {
      correlate_slots<Bytes, N, 2>(b, q, values, offset + s, at, n);
      s += 2;
    } else {
      correlate_slots<Bytes, N, 1>(b, q, values, offset + s, at, n);
      s += 1;
    }
  }
}

template <int Bytes, typename T, typename Acc>
MMEXT_INLINE void correlate_band(const CorrelateBand<T, Acc>& b) {
  constexpr int lanes = Vector<Acc, Bytes>::lanes;
  const Columns& c = *b.columns;
  for (int64_t j = 0; j < b.channels; ++j)
    for (int64_t i = 0; i < b.n_rows; ++i)
      stage_row<Bytes>(b.values + (j * b.n_rows + i) * c.pitch, b.key + j * b.key_stride + b.rows[i] * b.key_width, b.key_end, c);
  for (int64_t k = 0; k < b.n_tiles; ++k) {
    const Tile& tile = b.tiles[k];
    for (int64_t begin = 0; begin < c.count; begin += lanes) {
      // The last vector overlaps the one before it, unless what it wrote would be added twice.
      const int64_t x = begin + lanes <= c.count || c.count < lanes || b.accumulate ? begin : c.count - lanes;
      const int64_t n = c.count - x < lanes ? c.count - x : lanes, at = c.start + x;
      const int64_t next = begin + lanes < c.count ? lanes : kRows * b.out_width - x;
      for (int64_t j = 0; j < b.channels; ++j)
        for (int t = 0; t < tile.count; ++t) {
          const T* from = b.query + j * b.query_stride + tile.rows[t] * b.out_width + at;
          load_lanes<Bytes>(b.queries + (j * kRows + t) * lanes, from, 0, n, b.memory, b.memory_end);
          prefetch(from, next);
        }
      for (int64_t e = 0; e < tile.n_sources; ++e) {
        const SourceRow& s = tile.sources[e];
        const Acc* q[kRows];
        Acc* to[kRows];
        int pairs = 0;
        for (int t = 0; t < tile.count; ++t)
          if (s.mask >> t & 1) {
            q[pairs] = b.queries + t * lanes;
            to[pairs++] = b.out + s.tap[t] * b.kernel_width * b.out_tap + (b.compact ? t : tile.rows[t]) * b.out_width + at;
          }
        const Acc* v = b.values + s.row * c.pitch + x;
        switch (pairs) {
          case 1: correlate_row<Bytes, 1>(b, q, v, to, n); break;
          case 2: correlate_row<Bytes, 2>(b, q, v, to, n); break;
          case 3: correlate_row<Bytes, 3>(b, q, v, to, n); break;
          case 4: correlate_row<Bytes, 4>(b, q, v, to, n); break;
        }
      }
    }
  }
}

}  // namespace mmext::cpu
