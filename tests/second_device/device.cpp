// A second device for tests: tensors of torch's PrivateUse1 key, whose memory is the host's and whose operations are the
// CPU's. As on a GPU, an operation that is given tensors of both devices is refused.
#include <ATen/ATen.h>
#include <ATen/EmptyTensor.h>
#include <ATen/detail/PrivateUse1HooksInterface.h>
#include <ATen/native/CPUFallback.h>
#include <ATen/ops/_reshape_alias_native.h>
#include <ATen/ops/as_strided_native.h>
#include <ATen/ops/set_native.h>
#include <ATen/ops/view_native.h>
#include <ATen/CPUGeneratorImpl.h>
#include <c10/core/impl/alloc_cpu.h>
#include <c10/core/impl/DeviceGuardImplInterface.h>
#include <torch/library.h>

namespace {

constexpr auto KEY = c10::DeviceType::PrivateUse1;
const c10::DispatchKeySet KEYS(c10::DispatchKey::PrivateUse1);
std::atomic<int64_t> held{0}, most{0};

struct Block { void* memory; int64_t size; };

struct Memory final : c10::Allocator {
  static void release(void* context) {
    auto* block = static_cast<Block*>(context);
    held -= block->size;
    c10::free_cpu(block->memory);
    delete block;
  }
  c10::DataPtr allocate(size_t size) override {
    void* memory = c10::alloc_cpu(size);
    auto* block = new Block{memory, static_cast<int64_t>(size)};
    int64_t now = held += block->size;
    for (int64_t seen = most; now > seen && !most.compare_exchange_weak(seen, now);) {}
    return {memory, block, &release, c10::Device(KEY, 0)};
  }
  c10::DeleterFnPtr raw_deleter() const override { return &release; }
  void copy_data(void* to, const void* from, std::size_t count) const override { default_copy_data(to, from, count); }
};
Memory memory;
const bool registered = [] {
  c10::SetAllocator(KEY, &memory);
  return true;
}();

struct Guard final : c10::impl::DeviceGuardImplInterface {
  c10::DeviceType type() const override { return KEY; }
  c10::Device exchangeDevice(c10::Device) const override { return {KEY, 0}; }
  c10::Device getDevice() const override { return {KEY, 0}; }
  void setDevice(c10::Device) const override {}
  void uncheckedSetDevice(c10::Device) const noexcept override {}
  c10::Stream getStream(c10::Device) const override { return c10::Stream(c10::Stream::DEFAULT, c10::Device(KEY, 0)); }
  c10::Stream exchangeStream(c10::Stream) const override { return c10::Stream(c10::Stream::DEFAULT, c10::Device(KEY, 0)); }
  c10::DeviceIndex deviceCount() const noexcept override { return 1; }
};
C10_REGISTER_GUARD_IMPL(PrivateUse1, Guard);

struct Hooks final : at::PrivateUse1HooksInterface {
  bool isBuilt() const override { return true; }
  bool isAvailable() const override { return true; }
  bool hasPrimaryContext(c10::DeviceIndex) const override { return true; }
  const at::Generator& getDefaultGenerator(c10::DeviceIndex) const override { return at::detail::getDefaultCPUGenerator(); }
  at::Generator getNewGenerator(c10::DeviceIndex) const override { return at::detail::createCPUGenerator(); }
};

const bool hooked = [] {
  at::RegisterPrivateUse1HooksInterface(new Hooks());
  return true;
}();

at::Tensor empty(c10::SymIntArrayRef size, std::optional<at::ScalarType> dtype, std::optional<at::Layout>,
                 std::optional<at::Device>, std::optional<bool>, std::optional<at::MemoryFormat> format) {
  return at::detail::empty_generic(C10_AS_INTARRAYREF_SLOW(size), &memory, KEYS, c10::dtype_or_default(dtype), format);
}

at::Tensor empty_strided(c10::SymIntArrayRef size, c10::SymIntArrayRef stride, std::optional<at::ScalarType> dtype,
                         std::optional<at::Layout>, std::optional<at::Device>, std::optional<bool>) {
  return at::detail::empty_strided_generic(C10_AS_INTARRAYREF_SLOW(size), C10_AS_INTARRAYREF_SLOW(stride), &memory, KEYS,
                                           c10::dtype_or_default(dtype));
}

at::Tensor on_cpu(const at::Tensor& tensor) {
  if (tensor.is_cpu()) return tensor;
  return at::from_blob(const_cast<void*>(tensor.storage().data()), tensor.sizes(), tensor.strides(), tensor.storage_offset(),
                       [](void*) {}, tensor.options().device(c10::kCPU), c10::Device(c10::kCPU));
}

at::Tensor copy_from(const at::Tensor& from, const at::Tensor& to, bool) {
  if (to.numel()) on_cpu(to).copy_(on_cpu(from));
  return to;
}

at::Tensor copy_and_resize(const at::Tensor& from, const at::Tensor& to) {
  if (to.sizes() != from.sizes()) to.resize_(from.sizes());
  return copy_from(from, to, false);
}

at::Scalar item(const at::Tensor& tensor) { return on_cpu(tensor).item(); }

at::Tensor as_strided(const at::Tensor& self, c10::SymIntArrayRef size, c10::SymIntArrayRef stride, std::optional<c10::SymInt> offset) {
  std::optional<int64_t> start;
  if (offset) start = offset->expect_int();
  return at::native::as_strided_tensorimpl(self, C10_AS_INTARRAYREF_SLOW(size), C10_AS_INTARRAYREF_SLOW(stride), start);
}

at::Tensor view(const at::Tensor& self, c10::SymIntArrayRef size) { return at::native::view(self, C10_AS_INTARRAYREF_SLOW(size)); }

at::Tensor reshape_alias(const at::Tensor& self, c10::SymIntArrayRef size, c10::SymIntArrayRef stride) {
  return at::native::_reshape_alias(self, C10_AS_INTARRAYREF_SLOW(size), C10_AS_INTARRAYREF_SLOW(stride));
}

const at::Tensor& resize(const at::Tensor& self, c10::SymIntArrayRef size, std::optional<at::MemoryFormat>) {
  auto shape = C10_AS_INTARRAYREF_SLOW(size);
  int64_t wanted = c10::multiply_integers(shape) * self.itemsize() + self.storage_offset() * self.itemsize();
  auto storage = self.storage();
  if (wanted > static_cast<int64_t>(storage.nbytes())) {
    auto fresh = memory.allocate(wanted);
    if (storage.nbytes()) std::memcpy(fresh.get(), storage.data(), storage.nbytes());
    storage.set_data_ptr_noswap(std::move(fresh));
    storage.set_nbytes(wanted);
  }
  self.unsafeGetTensorImpl()->set_sizes_contiguous(shape);
  return self;
}

at::Tensor& set_storage(at::Tensor& self, at::Storage source, c10::SymInt offset, c10::SymIntArrayRef size, c10::SymIntArrayRef stride) {
  self.unsafeGetTensorImpl()->set_storage_keep_dtype(source);
  self.unsafeGetTensorImpl()->set_sizes_and_strides(C10_AS_INTARRAYREF_SLOW(size), C10_AS_INTARRAYREF_SLOW(stride), offset.expect_int());
  return self;
}

at::Tensor here_from(const at::Tensor& tensor) { return tensor.defined() ? tensor.to(c10::Device(KEY, 0)) : tensor; }

at::Tensor convolution(const at::Tensor& x, const at::Tensor& w, const std::optional<at::Tensor>& b, c10::SymIntArrayRef stride,
                       c10::SymIntArrayRef padding, c10::SymIntArrayRef dilation, bool transposed, c10::SymIntArrayRef out, c10::SymInt groups) {
  TORCH_CHECK(!x.is_cpu() && !w.is_cpu() && !(b && b->defined() && b->is_cpu()), "convolution: Expected all tensors to be on the same device");
  std::optional<at::Tensor> bias;
  if (b && b->defined()) bias = on_cpu(*b);
  return here_from(at::convolution_symint(on_cpu(x), on_cpu(w), bias, stride, padding, dilation, transposed, out, groups));
}

std::tuple<at::Tensor, at::Tensor, at::Tensor> convolution_backward(
    const at::Tensor& g, const at::Tensor& x, const at::Tensor& w, c10::SymIntArrayRef stride, c10::SymIntArrayRef padding,
    c10::SymIntArrayRef dilation, bool transposed, c10::SymIntArrayRef out, c10::SymInt groups, std::array<bool, 3> mask) {
  const std::vector<c10::SymInt> biases{g.sym_size(1)};
  auto [a, b, c] = at::convolution_backward_symint(on_cpu(g), on_cpu(x), on_cpu(w), c10::SymIntArrayRef(biases), stride, padding, dilation, transposed, out, groups, mask);
  return {here_from(a), here_from(b), here_from(c)};
}

void refuse_mix(const c10::OperatorHandle& op, const at::Tensor& tensor, bool& here, bool& there) {
  if (!tensor.defined()) return;
  here |= tensor.device().type() == KEY;
  there |= tensor.is_cpu() && tensor.dim() > 0;  // as on a GPU, single numbers may come from the CPU
}

bool may_mix(const std::string& name) {  // indices of the CPU are taken by a GPU as well
  return name == "aten::index" || name == "aten::_index_put_impl_" || name == "aten::index_put" || name == "aten::index_put_";
}

void fallback(const c10::OperatorHandle& op, torch::jit::Stack* stack) {
  const auto count = op.schema().arguments().size();
  bool here = false, there = false;
  for (size_t i = stack->size() - count; i < stack->size(); ++i) {
    const auto& value = (*stack)[i];
    if (value.isTensor()) refuse_mix(op, value.toTensor(), here, there);
    else if (value.isTensorList()) for (const at::Tensor t : value.toTensorList()) refuse_mix(op, t, here, there);
    else if (value.isOptionalTensorList()) for (const std::optional<at::Tensor> t : value.toOptionalTensorList()) if (t) refuse_mix(op, *t, here, there);
  }
  TORCH_CHECK(!(here && there) || may_mix(op.schema().name()), op.schema().name(), ": Expected all tensors to be on the same device, got both this device and the CPU");
  at::native::cpu_fallback(op, stack);
}

}  // namespace

TORCH_LIBRARY_IMPL(_, PrivateUse1, m) { m.fallback(torch::CppFunction::makeFromBoxedFunction<&fallback>()); }

TORCH_LIBRARY_IMPL(aten, PrivateUse1, m) {
  m.impl("empty.memory_format", &empty);
  m.impl("empty_strided", &empty_strided);
  m.impl("_copy_from", &copy_from);
  m.impl("_copy_from_and_resize", &copy_and_resize);
  m.impl("_local_scalar_dense", &item);
  m.impl("as_strided", &as_strided);
  m.impl("view", &view);
  m.impl("_reshape_alias", &reshape_alias);
  m.impl("convolution_overrideable", &convolution);
  m.impl("convolution_backward_overrideable", &convolution_backward);
  m.impl("resize_", &resize);
  m.impl("set_.source_Storage_storage_offset", &set_storage);
}

extern "C" int64_t most_bytes() { return most.load(); }
extern "C" void forget_most() { most = held.load(); }
