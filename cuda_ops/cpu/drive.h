// Cuts the work into bands that fit the cache, one task each, and runs the kernels over them.
//
// Needs at::parallel_for, at::opmath_type and TORCH_CHECK, which fuzz.cpp supplies without torch.
#pragma once

#include <cstdlib>
#include <memory>
#include <set>
#include <vector>

#include "isa.h"

namespace mmext::cpu {

constexpr int64_t kScratchBytes = 256 * 1024;   // staged values of a task: a quarter of a usual second-level cache
constexpr int64_t kBlockChannels = 32;          // channels of a task, unless the group has fewer

// A band of output rows, cut into tiles, with the source rows that it needs.
struct RowBand {
  std::vector<Tile> tiles;
  std::vector<SourceRow> sources;
  std::vector<Meeting> meetings;
  std::vector<int64_t> rows;   // the source rows, each once, in order
  int64_t most_sources = 0;    // of any tile
};

RowBand make_band(const int64_t* rows, int64_t n, const std::vector<std::vector<Contribution>>& table) {
  RowBand band;
  std::vector<size_t> begin;
  for (int64_t r = 0; r < n; r += kRows) {
    Tile tile{};
    tile.count = static_cast<int>(std::min<int64_t>(kRows, n - r));
    begin.push_back(band.sources.size());
    for (int t = 0; t < tile.count; ++t) {
      tile.rows[t] = rows[r + t];
      for (const Contribution& c : table[tile.rows[t]]) {
        auto s = std::find_if(band.sources.begin() + begin.back(), band.sources.end(),
                              [&](const SourceRow& e) { return e.row == c.source; });
        if (s == band.sources.end()) {
          SourceRow fresh{c.source, {}, 0};
          std::fill_n(fresh.tap, kRows, -1);
          s = band.sources.insert(s, fresh);
        }
        s->tap[t] = c.tap;
        s->mask |= 1u << t;
        band.rows.push_back(c.source);
      }
    }
    tile.n_sources = static_cast<int64_t>(band.sources.size() - begin.back());
    band.most_sources = std::max(band.most_sources, tile.n_sources);
    band.tiles.push_back(tile);
  }
  for (size_t k = 0; k < begin.size(); ++k) {
    Tile& tile = band.tiles[k];
    tile.sources = band.sources.data() + begin[k];
    const size_t before = band.meetings.size();
    for (int64_t e = 0; e < tile.n_sources; ++e)
      for (int t = 0; t < tile.count; ++t)
        if (tile.sources[e].mask >> t & 1) band.meetings.push_back({tile.sources[e].tap[t], e, t});
    tile.n_meetings = static_cast<int64_t>(band.meetings.size() - before);
    std::sort(band.meetings.begin() + before, band.meetings.end(),
              [](const Meeting& a, const Meeting& b) { return a.tap != b.tap ? a.tap < b.tap : a.t < b.t; });
  }
  const Meeting* meetings = band.meetings.data();
  for (Tile& tile : band.tiles) {
    tile.meetings = meetings;
    meetings += tile.n_meetings;
  }
  std::sort(band.rows.begin(), band.rows.end());
  band.rows.erase(std::unique(band.rows.begin(), band.rows.end()), band.rows.end());
  for (SourceRow& s : band.sources)
    s.row = std::lower_bound(band.rows.begin(), band.rows.end(), s.row) - band.rows.begin();
  return band;
}

// Cut the rows into bands of tiles whose staged rows stay within `budget` rows, at least one tile each. A budget of 0 gives
// bands of one tile, also where tiles see nothing and so stage nothing.
std::vector<RowBand> make_bands(const Axis& axis, bool shift, bool adjoint, int64_t budget) {
  const auto table = contributions(axis, shift, adjoint);
  const auto order = row_order(axis, adjoint);
  const int64_t n = static_cast<int64_t>(order.size());
  std::vector<RowBand> bands;
  for (int64_t begin = 0; begin < n;) {
    std::set<int64_t> rows;
    int64_t end = begin;
    while (end < n) {
      const int64_t next = std::min(end + kRows, n);
      for (int64_t i = end; i < next; ++i)
        for (const Contribution& c : table[order[i]]) rows.insert(c.source);
      if (end > begin && (budget == 0 || static_cast<int64_t>(rows.size()) > budget)) break;
      end = next;
    }
    bands.push_back(make_band(order.data() + begin, end - begin, table));
    begin = end;
  }
  return bands;
}

// Aligned memory of a thread, kept between calls: fresh pages would cost more than the arithmetic of a small image.
template <typename Acc>
Acc* scratch(int64_t elements) {
  thread_local std::unique_ptr<void, decltype(&std::free)> memory(nullptr, &std::free);
  thread_local size_t held = 0;
  const size_t bytes = (elements * sizeof(Acc) / kMaxBytes + 1) * kMaxBytes;
  if (bytes > held) {
    memory.reset(std::aligned_alloc(kMaxBytes, bytes));
    held = memory ? bytes : 0;
    TORCH_CHECK(held > 0, "mmext: no memory for ", bytes, " bytes of scratch");
  }
  return static_cast<Acc*>(memory.get());
}

int64_t up(int64_t n, int64_t unit) { return (n + unit - 1) / unit * unit; }

int64_t most_rows(const std::vector<RowBand>& bands) {
  int64_t rows = 1;
  for (const RowBand& b : bands) rows = std::max(rows, static_cast<int64_t>(b.rows.size()));
  return rows;
}

// aggregate and its adjoint: `source` is the value or the gradient, `out` lives on the other grid.
template <typename T>
void aggregate(const Geometry& g, const T* source, const T* weight, int64_t weight_batch, T* out, bool adjoint) {
  using Acc = at::opmath_type<T>;
  constexpr int64_t lanes = kMaxBytes / sizeof(Acc);
  const int64_t image_weights = g.groups * g.taps() * g.y.output * g.x.output;
  const int64_t source_height = adjoint ? g.y.output : g.y.source, source_width = adjoint ? g.x.output : g.x.source;
  const int64_t out_height = adjoint ? g.y.source : g.y.output, out_width = adjoint ? g.x.source : g.x.output;
  const int64_t block = std::min(g.per_group(), kBlockChannels), blocks = (g.per_group() + block - 1) / block;
  const auto classes = column_classes(g.x, g.shift, adjoint, g.y.output * g.x.output, lanes);
  int64_t pitch = 1, slots = 1;
  for (const Columns& c : classes) pitch = std::max(pitch, c.pitch), slots = std::max(slots, c.slots());
  const auto bands = make_bands(g.y, g.shift, adjoint, kScratchBytes / (block * pitch * int64_t(sizeof(Acc))));
  int64_t sources = 1;
  for (const RowBand& b : bands) sources = std::max(sources, b.most_sources);
  const int64_t n_bands = static_cast<int64_t>(bands.size());
  const int64_t between = g.per_group() > 1 ? g.channel(0, 1) - g.channel(0, 0) : 1;   // channels of a group

  // The blocks of a group run one after the other over the same band: its weights are then in the cache.
  at::parallel_for(0, g.batch * g.groups * n_bands * blocks, 1, [&](int64_t begin, int64_t end) {
    const int64_t values = up(block * most_rows(bands) * pitch, lanes);
    Acc* const memory = scratch<Acc>(values + sources * slots * kRows * lanes);
    std::unique_ptr<const Acc*[][kRows]> weight_rows(new const Acc*[sources][kRows]);
    std::vector<int64_t> direct_slots(slots), staged_slots(slots);
    for (int64_t task = begin; task < end; ++task) {
      const int64_t j = task % blocks * block, k = task / blocks % n_bands;
      const int64_t group = task / blocks / n_bands % g.groups, image = task / blocks / n_bands / g.groups;
      const int64_t channel = image * g.channels + g.channel(group, j);
      AggregateBand<T, Acc> b{};
      b.source = source + channel * source_height * source_width;
      b.source_end = source + g.batch * g.channels * source_height * source_width;
      b.weight = weight + image * weight_batch + group * g.taps() * g.y.output * g.x.output;
      b.memory = weight;
      b.memory_end = weight + (weight_batch > 0 ? g.batch : 1) * image_weights;
      b.out = out + channel * out_height * out_width;
      b.channels = std::min(block, g.per_group() - j);
      b.source_stride = between * source_height * source_width;
      b.out_stride = between * out_height * out_width;
      b.source_width = source_width;
      b.out_width = out_width;
      b.weight_height = g.y.output;
      b.weight_width = g.x.output;
      b.kernel_width = g.x.kernel;
      b.adjoint = adjoint;
      b.tiles = bands[k].tiles.data();
      b.n_tiles = static_cast<int64_t>(bands[k].tiles.size());
      b.rows = bands[k].rows.data();
      b.n_rows = static_cast<int64_t>(bands[k].rows.size());
      b.values = memory;
      b.weights = memory + values;
      b.weight_rows = weight_rows.get();
      b.direct_slots = direct_slots.data();
      b.staged_slots = staged_slots.data();
      for (const Columns& c : classes) {
        b.columns = &c;
        run_aggregate_band(b);
      }
    }
  });
}

template <typename T>
void correlate(const Geometry& g, const T* query, const T* key, T* out) {
  using Acc = at::opmath_type<T>;
  constexpr int64_t lanes = kMaxBytes / sizeof(Acc);
  const int64_t key_plane = g.y.source * g.x.source, out_plane = g.y.output * g.x.output;
  const int64_t block = std::min(g.per_group(), 2 * kBlockChannels);
  const auto classes = column_classes(g.x, g.shift, false, out_plane, lanes);
  int64_t pitch = 1;
  for (const Columns& c : classes) pitch = std::max(pitch, c.pitch);
  // Sums are made in the output itself, or, for half types, in a float copy of one tile that is rounded once.
  constexpr bool in_place = std::is_same_v<T, Acc>;
  const auto bands =
      make_bands(g.y, g.shift, false, in_place ? kScratchBytes / (block * pitch * int64_t(sizeof(Acc))) : 0);
  const auto rows = contributions(g.y, g.shift, false);
  const int64_t n_bands = static_cast<int64_t>(bands.size());
  const int64_t between = g.per_group() > 1 ? g.channel(0, 1) - g.channel(0, 0) : 1;
  const int64_t out_tap = in_place ? out_plane : kRows * g.x.output;

  at::parallel_for(0, g.batch * g.groups * n_bands, 1, [&](int64_t begin, int64_t end) {
    const int64_t values = up(block * most_rows(bands) * pitch, lanes), queries = block * kRows * lanes;
    Acc* const memory = scratch<Acc>(values + queries + (in_place ? 0 : g.taps() * out_tap));
    for (int64_t task = begin; task < end; ++task) {
      const RowBand& band = bands[task % n_bands];
      const int64_t group = task / n_bands % g.groups, image = task / n_bands / g.groups;
      T* logits = out + (image * g.groups + group) * g.taps() * out_plane;
      Acc* sums;
      if constexpr (in_place)
        sums = logits;
      else
        sums = memory + values + queries;
      for (const Tile& tile : band.tiles)
        for (int t = 0; t < tile.count; ++t)
          for (int64_t ky = 0; ky < g.y.kernel; ++ky) {   // taps that see nothing
            const auto& row = rows[tile.rows[t]];
            if (std::any_of(row.begin(), row.end(), [&](const Contribution& c) { return c.tap == ky; })) continue;
            for (int64_t kx = 0; kx < g.x.kernel; ++kx)
              std::fill_n(sums + (ky * g.x.kernel + kx) * out_tap + (in_place ? tile.rows[t] : t) * g.x.output, g.x.output,
                          Acc(0));
          }
      for (int64_t j = 0; j < g.per_group(); j += block) {
        const int64_t channel = image * g.channels + g.channel(group, j);
        CorrelateBand<T, Acc> b{};
        b.key = key + channel * key_plane;
        b.key_end = key + g.batch * g.channels * key_plane;
        b.query = query + channel * out_plane;
        b.channels = std::min(block, g.per_group() - j);
        b.key_stride = between * key_plane;
        b.query_stride = between * out_plane;
        b.key_width = g.x.source;
        b.out_width = g.x.output;
        b.tiles = band.tiles.data();
        b.n_tiles = static_cast<int64_t>(band.tiles.size());
        b.rows = band.rows.data();
        b.n_rows = static_cast<int64_t>(band.rows.size());
        b.values = memory;
        b.queries = memory + values;
        b.out = sums;
        b.out_tap = out_tap;
        b.kernel_width = g.x.kernel;
        b.compact = !in_place;
        b.accumulate = j > 0;
        b.memory = query;
        b.memory_end = query + g.batch * g.channels * out_plane;
        for (const Columns& c : classes) {
          b.columns = &c;
          run_correlate_band(b);
        }
      }
      if constexpr (!in_place) {
        const Tile& tile = band.tiles.front();
        for (int64_t k = 0; k < g.taps(); ++k)
          for (int t = 0; t < tile.count; ++t)
            convert(logits + k * out_plane + tile.rows[t] * g.x.output, sums + k * out_tap + t * g.x.output, g.x.output);
      }
    }
  });
}

}  // namespace mmext::cpu
