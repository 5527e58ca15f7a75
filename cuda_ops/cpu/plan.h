// What the CPU kernels know about the geometry: tables, built once per call.
//
// All three operators become one dense loop, "for every output vector, for every slot: multiply a staged value vector by a
// staged weight vector". A slot is a tap (aggregate, correlate) or a pair of tap and output pixel (adjoint). Border rules,
// strides and dilations live in these tables only.
#pragma once

#include <algorithm>
#include <cstdint>
#include <map>
#include <numeric>
#include <vector>

#include "../neighborhood.h"

namespace mmext::cpu {

// A pair (source position, tap) that contributes to an output position.
struct Contribution {
  int64_t source, tap;
};

// For every output position of an axis, its contributions. `adjoint` inverts the map.
inline std::vector<std::vector<Contribution>> contributions(const Axis& a, bool shift, bool adjoint) {
  std::vector<std::vector<Contribution>> table(adjoint ? a.source : a.output);
  for (int64_t o = 0; o < a.output; ++o)
    for (int64_t k = 0; k < a.kernel; ++k)
      if (const int64_t i = tap_position(a, o, k, shift); i >= 0) {
        if (adjoint)
          table[i].push_back({o, k});
        else
          table[o].push_back({i, k});
      }
  return table;
}

// Rows that share source rows are processed together; with a dilation those are not neighbours.
inline std::vector<int64_t> row_order(const Axis& a, bool adjoint) {
  const int64_t step = adjoint ? a.dilation : a.dilation / std::gcd(a.dilation, a.stride);
  const int64_t length = adjoint ? a.source : a.output;
  std::vector<int64_t> order;
  order.reserve(length);
  for (int64_t residue = 0; residue < std::min(step, length); ++residue)
    for (int64_t o = residue; o < length; o += step) order.push_back(o);
  return order;
}

// Staged elements [to, to + size): zeros if `from` is negative, else source column `from` again and again, or from there on.
struct Run {
  int64_t to, from, size;
  bool repeats;
};

// A set of output columns start, start + step, ... whose slots are alike, and how the source row is staged for it.
struct Columns {
  int64_t start, step, count;
  int64_t pitch;                         // staged elements per row
  std::vector<int64_t> source;           // staged element -> source column, -1 for zero
  std::vector<Run> runs;                 // the same, where that is shorter; else empty
  std::vector<int64_t> offset;           // slot -> where its vector for column 0 begins in the staged row
  // The weight of slot q at column m sits at tap[q], column m + delta[q], where that lies in [low, high). The slots behind
  // those have each weight in a place of its own: `place` of slot q begins at (q - regular()) * pitch_of_places, and an entry
  // is tap * plane + column, -1 for zero.
  std::vector<int64_t> tap, delta;
  int64_t low, high, least_delta, most_delta;
  std::vector<int64_t> place;
  int64_t pitch_of_places;

  int64_t slots() const { return static_cast<int64_t>(offset.size()); }
  int64_t regular() const { return static_cast<int64_t>(tap.size()); }
};

// `outputs` is the length of a row of weights.
inline void finish(Columns& c, int64_t outputs) {
  if (c.high == 0) c.high = outputs;
  if (!c.delta.empty()) c.least_delta = c.most_delta = c.delta.front();
  for (const int64_t d : c.delta) c.least_delta = std::min(c.least_delta, d), c.most_delta = std::max(c.most_delta, d);
  c.pitch = static_cast<int64_t>(c.source.size());
  for (int64_t e = 0; e < c.pitch;) {
    Run run{e, c.source[e], 1, c.source[e] < 0};
    const auto next = [&c, &run] { return run.to + run.size < c.pitch ? c.source[run.to + run.size] : INT64_MIN; };
    run.repeats = run.repeats || next() == run.from;
    while (next() == run.from + (run.repeats ? 0 : run.size)) ++run.size;
    c.runs.push_back(run);
    e += run.size;
  }
  if (int64_t(c.runs.size()) * 4 > c.pitch + 12) c.runs.clear();
}

inline int64_t whole_vectors(int64_t n, int64_t lanes) { return (n + lanes - 1) / lanes * lanes; }

// Columns [begin, end) with every slot staged in a segment of its own. The slots of an adjoint are appended to those that `c`
// has already, and have their weights in places of their own.
inline void append_segments(Columns& c, const std::vector<std::vector<Contribution>>& table, int64_t begin, int64_t end,
                            bool adjoint, int64_t plane, int64_t lanes) {
  c.start = begin;
  c.step = 1;
  c.count = end - begin;
  size_t slots = 0;
  for (int64_t m = begin; m < end; ++m) slots = std::max(slots, table[m].size());
  const int64_t segment = c.pitch_of_places = whole_vectors(c.count, lanes), before = c.source.size();
  c.source.resize(before + slots * segment, -1);
  if (adjoint) c.place.assign(slots * segment, -1);
  for (size_t q = 0; q < slots; ++q) {
    c.offset.push_back(before + q * segment);
    if (!adjoint) {
      c.tap.push_back(q);
      c.delta.push_back(begin);
    }
    for (int64_t m = 0; m < c.count; ++m)
      if (const auto& row = table[begin + m]; q < row.size()) {
        c.source[before + q * segment + m] = row[q].source;
        if (adjoint) c.place[q * segment + m] = row[q].tap * plane + row[q].source;
      }
  }
}

// The columns near the border of sliding windows, [begin, end). For the adjoint, windows that do not slide are ordinary ones,
// and only the others have slots of their own, unless that would hardly save any.
inline Columns border_columns(const Axis& a, const std::vector<std::vector<Contribution>>& table, int64_t begin, int64_t end,
                              bool adjoint, int64_t plane, int64_t lanes) {
  Columns c{};
  const int64_t reach = a.dilation * (a.kernel - 1) / 2;
  auto sliding = table;
  size_t all = 0, few = 0;
  if (adjoint)
    for (int64_t i = begin; i < end; ++i) {
      auto& row = sliding[i];
      const auto stays = [&](const Contribution& s) { return s.source >= reach && s.source < a.output - reach; };
      row.erase(std::remove_if(row.begin(), row.end(), stays), row.end());
      all = std::max(all, table[i].size());
      few = std::max(few, row.size());
    }
  const bool mixed = 4 * few < 3 * all;
  if (mixed) {
    c.low = reach;
    c.high = a.output - reach;
    for (int64_t k = 0; k < a.kernel; ++k) {
      c.tap.push_back(k);
      c.offset.push_back(2 * reach - k * a.dilation);
      c.delta.push_back(begin + reach - k * a.dilation);
    }
    for (int64_t e = 0; e < whole_vectors(end - begin, lanes) + 2 * reach; ++e) {
      const int64_t o = begin - reach + e;
      c.source.push_back(o >= c.low && o < c.high ? o : -1);
    }
  }
  append_segments(c, mixed ? sliding : table, begin, end, adjoint, plane, lanes);
  finish(c, a.output);
  return c;
}

// `lanes` is the longest vector any kernel reads: staged rows are long enough for a full vector at every column. `plane` is the
// number of weights of a tap.
inline std::vector<Columns> column_classes(const Axis& a, bool shift, bool adjoint, int64_t plane, int64_t lanes) {
  const auto padded = [lanes](int64_t n) { return whole_vectors(n, lanes); };
  std::vector<Columns> classes;
  if (shift) {
    // Away from the border a shifted window is an ordinary one; near it, slots are staged by themselves.
    const auto table = contributions(a, true, adjoint);
    const int64_t length = a.source, reach = a.dilation * (a.kernel - 1) / 2;
    const int64_t edge = padded(adjoint ? a.dilation * a.kernel : reach);
    const bool interior = length > 2 * edge;
    classes.push_back(border_columns(a, table, 0, interior ? edge : length, adjoint, plane, lanes));
    if (interior) {
      Columns c{};
      c.start = edge;
      c.step = 1;
      c.count = length - 2 * edge;
      for (int64_t k = 0; k < a.kernel; ++k) {
        const int64_t at = adjoint ? 2 * reach - k * a.dilation : k * a.dilation;
        c.tap.push_back(k);
        c.offset.push_back(at);
        c.delta.push_back(edge + (adjoint ? at - reach : 0));
      }
      for (int64_t e = 0; e < padded(c.count) + 2 * reach; ++e) {
        const int64_t i = edge - reach + e;
        c.source.push_back(i < length ? i : -1);
      }
      finish(c, a.output);
      classes.push_back(std::move(c));
      classes.push_back(border_columns(a, table, length - edge, length, adjoint, plane, lanes));
    }
  } else if (!adjoint) {
    // One class; one staged segment for every residue of the tap offset modulo the stride, from the first to the last tap of it
    // that sees the image. All other taps share a segment of zeros: nothing grows with their distance from the image.
    Columns c{};
    c.step = 1;
    c.count = a.output;
    struct Segment {
      int64_t low = INT64_MAX, high = -1, begin = 0;   // in strides from the segment's residue
    };
    std::map<int64_t, Segment> segments;
    for (int64_t k = 0; k < a.kernel; ++k)
      if (tap_sees(a, k)) {
        Segment& s = segments[k * a.dilation % a.stride];
        s.low = std::min(s.low, k * a.dilation / a.stride);
        s.high = std::max(s.high, k * a.dilation / a.stride);
      }
    for (auto& [residue, s] : segments) {
      s.begin = static_cast<int64_t>(c.source.size());
      int64_t i = s.low * a.stride + residue - a.padding;
      for (int64_t e = 0; e < padded(c.count) + s.high - s.low; ++e) {
        c.source.push_back(i >= 0 && i < a.source ? i : -1);
        if (i < a.source) i += a.stride;   // no further: what lies beyond would not be a number for long
      }
    }
    const int64_t zeros = static_cast<int64_t>(c.source.size());
    for (int64_t k = 0; k < a.kernel; ++k) {
      c.tap.push_back(k);
      c.delta.push_back(0);
      if (tap_sees(a, k)) {
        const Segment& s = segments[k * a.dilation % a.stride];
        c.offset.push_back(s.begin + k * a.dilation / a.stride - s.low);
      } else {
        c.offset.push_back(zeros);
        c.source.resize(zeros + padded(c.count), -1);
      }
    }
    finish(c, a.output);
    classes.push_back(std::move(c));
  } else if (a.stride >= a.source) {
    // Every residue would be a single column: one class of all of them instead.
    Columns c{};
    append_segments(c, contributions(a, false, true), 0, a.source, true, plane, lanes);
    finish(c, a.output);
    classes.push_back(std::move(c));
  } else {
    // Source columns of one residue modulo the stride are reached by the same taps.
    for (int64_t residue = 0; residue < a.stride; ++residue) {
      Columns c{};
      c.start = residue;
      c.step = a.stride;
      c.count = (a.source - residue + a.stride - 1) / a.stride;
      int64_t low = 0, high = 0;
      for (int64_t k = 0; k < a.kernel; ++k) {
        const int64_t numerator = residue + a.padding - k * a.dilation;
        if (numerator % a.stride != 0) continue;
        const int64_t delta = numerator / a.stride;
        if (delta <= -c.count || delta >= a.output) continue;   // no window of this tap sees these columns
        low = c.tap.empty() ? delta : std::min(low, delta);
        high = c.tap.empty() ? delta : std::max(high, delta);
        c.tap.push_back(k);
        c.delta.push_back(delta);
      }
      for (const int64_t delta : c.delta) c.offset.push_back(delta - low);
      for (int64_t e = 0; e < padded(c.count) + high - low; ++e) {
        const int64_t o = e + low;
        c.source.push_back(o >= 0 && o < a.output ? o : -1);
      }
      finish(c, a.output);
      classes.push_back(std::move(c));
    }
  }
  return classes;
}

}  // namespace mmext::cpu
