// Registers the kernels under the operators that mmext/ops/neighborhood/op.py defines, and their autocast rule.
//
// The schemas, fake kernels and derivatives live in Python, because they must exist where this library does not.
#include <Python.h>

#include <ATen/autocast_mode.h>
#include <torch/library.h>

#include "operators.h"

namespace mmext {

void aggregate_impl(const Geometry& geometry, const at::Tensor& source, const at::Tensor& weight, at::Tensor& out, bool adjoint) {
  DISPATCH_DEVICE_IMPL(aggregate_impl, geometry, source, weight, out, adjoint);
}

void correlate_impl(const Geometry& geometry, const at::Tensor& query, const at::Tensor& key, at::Tensor& out) {
  DISPATCH_DEVICE_IMPL(correlate_impl, geometry, query, key, out);
}

namespace {

// Entries of kernel, stride, dilation and padding are below 2^31 and sizes at most 2^62: no sum or product of them, here or in
// a kernel that counts in 64 bits, leaves the 64-bit integers.
constexpr int64_t kMostEntry = (int64_t(1) << 31) - 1, kMostSize = int64_t(1) << 62;

void check_entries(const char* name, at::IntArrayRef entries, size_t count, int64_t least) {
  TORCH_CHECK_VALUE(entries.size() == count, "mmext: ", name, " must have ", count, " entries, got ", entries);
  for (const int64_t entry : entries)
    TORCH_CHECK_VALUE(entry >= least && entry <= kMostEntry, "mmext: the entries of ", name, " must lie between ", least,
                      " and 2^31 - 1, got ", entries);
}

// The laws of `check_window` and `output_size` in mmext/ops/neighborhood/geometry.py; repeated here because these operators can
// be called directly and must not read outside of their arguments.
Geometry make_geometry(const at::Tensor& value_like, int64_t height, int64_t width, int64_t out_height, int64_t out_width,
                       int64_t groups, at::IntArrayRef kernel, at::IntArrayRef stride, at::IntArrayRef dilation,
                       at::IntArrayRef padding, bool shift, bool interleave) {
  check_entries("kernel", kernel, 2, 1);
  check_entries("stride", stride, 2, 1);
  check_entries("dilation", dilation, 2, 1);
  check_entries("padding", padding, 4, 0);
  Geometry g{value_like.size(0), value_like.size(1), groups,
             Axis{height, out_height, kernel[0], stride[0], dilation[0], padding[0]},
             Axis{width, out_width, kernel[1], stride[1], dilation[1], padding[2]}, shift, interleave};
  TORCH_CHECK_VALUE(groups > 0 && g.channels % groups == 0, "mmext: the channels must be a multiple of the groups, got ",
                    g.channels, " channels and ", groups, " groups");
  const int64_t after[2] = {padding[1], padding[3]};
  int i = 0;
  for (const Axis* a : {&g.y, &g.x}) {
    TORCH_CHECK_VALUE(a->source >= 0 && a->source <= kMostSize, "mmext: a size must lie between 0 and 2^62, got ", a->source);
    if (shift) {
      TORCH_CHECK_VALUE(a->kernel % 2 == 1 && a->stride == 1 && a->kernel * a->dilation <= a->source && a->output == a->source,
                        "mmext: border 'shift' needs stride 1, an odd kernel and kernel * dilation <= size, got kernel ",
                        a->kernel, ", dilation ", a->dilation, ", stride ", a->stride, ", sizes ", a->source, " and ", a->output);
    } else {
      const int64_t room = a->source + a->padding + after[i] - a->dilation * (a->kernel - 1) - 1;
      TORCH_CHECK_VALUE(room >= 0 && a->output == room / a->stride + 1, "mmext: ", a->output,
                        " output positions do not belong to ", a->source, " source positions with kernel ", a->kernel,
                        ", stride ", a->stride, ", dilation ", a->dilation, ", padding ", a->padding, " and ", after[i]);
    }
    ++i;
  }
  return g;
}

// Contiguous, except that one batch entry may stand for all.
at::Tensor batch_broadcast(const at::Tensor& weight) {
  if (weight.size(0) > 1 && weight.stride(0) == 0) return weight.narrow(0, 0, 1).contiguous().expand_as(weight);
  return weight.contiguous();
}

void check_pair(const at::Tensor& a, const at::Tensor& b, int64_t dim_b) {
  TORCH_CHECK_VALUE(a.dim() == 4 && b.dim() == dim_b, "mmext: expected ranks 4 and ", dim_b, ", got ", a.dim(), " and ", b.dim());
  TORCH_CHECK_VALUE(a.scalar_type() == b.scalar_type() && a.is_floating_point() && a.device() == b.device(),
                    "mmext: both tensors must have one floating dtype and one device, got ", a.scalar_type(), " on ", a.device(),
                    " and ", b.scalar_type(), " on ", b.device());
  TORCH_CHECK_VALUE(a.size(0) == b.size(0), "mmext: both tensors must have one batch size, got ", a.size(0), " and ", b.size(0));
}

at::Tensor aggregate(const at::Tensor& value, const at::Tensor& weight, at::IntArrayRef kernel, at::IntArrayRef stride,
                     at::IntArrayRef dilation, at::IntArrayRef padding, bool shift, bool interleave) {
  check_pair(value, weight, 5);
  const Geometry g = make_geometry(value, value.size(2), value.size(3), weight.size(3), weight.size(4), weight.size(1), kernel,
                                   stride, dilation, padding, shift, interleave);
  TORCH_CHECK_VALUE(weight.size(2) == g.taps(), "mmext: the weight has ", weight.size(2), " taps for a kernel of ", g.taps());
  at::Tensor out = at::empty({g.batch, g.channels, g.y.output, g.x.output}, value.options(), at::MemoryFormat::Contiguous);
  if (out.numel() > 0) aggregate_impl(g, value.contiguous(), batch_broadcast(weight), out, false);
  return out;
}

at::Tensor adjoint(const at::Tensor& grad, const at::Tensor& weight, int64_t height, int64_t width, at::IntArrayRef kernel,
                   at::IntArrayRef stride, at::IntArrayRef dilation, at::IntArrayRef padding, bool shift, bool interleave) {
  check_pair(grad, weight, 5);
  TORCH_CHECK_VALUE(grad.size(2) == weight.size(3) && grad.size(3) == weight.size(4), "mmext: gradient and weight differ in size");
  const Geometry g = make_geometry(grad, height, width, grad.size(2), grad.size(3), weight.size(1), kernel, stride, dilation,
                                   padding, shift, interleave);
  TORCH_CHECK_VALUE(weight.size(2) == g.taps(), "mmext: the weight has ", weight.size(2), " taps for a kernel of ", g.taps());
  at::Tensor out = at::empty({g.batch, g.channels, height, width}, grad.options(), at::MemoryFormat::Contiguous);
  if (out.numel() > 0) aggregate_impl(g, grad.contiguous(), batch_broadcast(weight), out, true);
  return out;
}

at::Tensor correlate(const at::Tensor& query, const at::Tensor& key, int64_t groups, at::IntArrayRef kernel,
                     at::IntArrayRef stride, at::IntArrayRef dilation, at::IntArrayRef padding, bool shift, bool interleave) {
  check_pair(query, key, 4);
  TORCH_CHECK_VALUE(query.size(1) == key.size(1), "mmext: query and key differ in channels");
  const Geometry g = make_geometry(key, key.size(2), key.size(3), query.size(2), query.size(3), groups, kernel, stride, dilation,
                                   padding, shift, interleave);
  at::Tensor out = at::empty({g.batch, groups, g.taps(), g.y.output, g.x.output}, query.options());
  if (g.channels == 0) out.zero_();
  if (out.numel() > 0 && g.channels > 0) correlate_impl(g, query.contiguous(), key.contiguous(), out);
  return out;
}

// Autocast: both tensors in the type that autocast asks for, whichever half type that is today.
template <c10::DeviceType device, typename Op, typename... Rest>
at::Tensor autocast(const char* name, const at::Tensor& a, const at::Tensor& b, Rest... rest) {
  const c10::impl::ExcludeDispatchKeyGuard guard(c10::DispatchKeySet(at::autocast::get_autocast_dispatch_key_from_device_type(device)));
  static const auto op = c10::Dispatcher::singleton().findSchemaOrThrow(name, "").typed<Op>();
  const auto type = at::autocast::get_autocast_dtype(device);
  return op.call(at::autocast::cached_cast(type, a, device), at::autocast::cached_cast(type, b, device), rest...);
}

using Pair = at::IntArrayRef;

template <c10::DeviceType device>
at::Tensor aggregate_autocast(const at::Tensor& value, const at::Tensor& weight, Pair kernel, Pair stride, Pair dilation,
                              Pair padding, bool shift, bool interleave) {
  using Op = at::Tensor(const at::Tensor&, const at::Tensor&, Pair, Pair, Pair, Pair, bool, bool);
  return autocast<device, Op>("mmext::neighborhood_aggregate", value, weight, kernel, stride, dilation, padding, shift, interleave);
}

template <c10::DeviceType device>
at::Tensor adjoint_autocast(const at::Tensor& grad, const at::Tensor& weight, c10::SymInt height, c10::SymInt width, Pair kernel,
                            Pair stride, Pair dilation, Pair padding, bool shift, bool interleave) {
  using Op = at::Tensor(const at::Tensor&, const at::Tensor&, c10::SymInt, c10::SymInt, Pair, Pair, Pair, Pair, bool, bool);
  return autocast<device, Op>("mmext::neighborhood_aggregate_adjoint", grad, weight, height, width, kernel, stride, dilation,
                              padding, shift, interleave);
}

template <c10::DeviceType device>
at::Tensor correlate_autocast(const at::Tensor& query, const at::Tensor& key, c10::SymInt groups, Pair kernel, Pair stride,
                              Pair dilation, Pair padding, bool shift, bool interleave) {
  using Op = at::Tensor(const at::Tensor&, const at::Tensor&, c10::SymInt, Pair, Pair, Pair, Pair, bool, bool);
  return autocast<device, Op>("mmext::neighborhood_correlate", query, key, groups, kernel, stride, dilation, padding, shift, interleave);
}

#define MMEXT_KERNELS(key)                                   \
  TORCH_LIBRARY_IMPL(mmext, key, m) {                        \
    m.impl("neighborhood_aggregate", aggregate);             \
    m.impl("neighborhood_aggregate_adjoint", adjoint);       \
    m.impl("neighborhood_correlate", correlate);             \
  }
#define MMEXT_AUTOCAST(key, device)                                          \
  TORCH_LIBRARY_IMPL(mmext, key, m) {                                        \
    m.impl("neighborhood_aggregate", aggregate_autocast<device>);            \
    m.impl("neighborhood_aggregate_adjoint", adjoint_autocast<device>);      \
    m.impl("neighborhood_correlate", correlate_autocast<device>);            \
  }

MMEXT_KERNELS(CPU)
MMEXT_AUTOCAST(AutocastCPU, at::kCPU)
MMEXT_AUTOCAST(AutocastCUDA, at::kCUDA)
#ifdef MMEXT_WITH_CUDA
MMEXT_KERNELS(CUDA)
#endif

}  // namespace
}  // namespace mmext

// An importable module without content: importing it loads the library, which registers everything above.
PyMODINIT_FUNC PyInit__C() {
  static PyModuleDef module = {PyModuleDef_HEAD_INIT, "_C", nullptr, -1, nullptr};
  PyObject* built = PyModule_Create(&module);
#ifdef MMEXT_WITH_CUDA
  if (built) PyModule_AddIntConstant(built, "with_cuda", 1);
#else
  if (built) PyModule_AddIntConstant(built, "with_cuda", 0);
#endif
  return built;
}
