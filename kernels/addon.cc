#include <napi.h>

#include <cstring>
#include <functional>
#include <memory>
#include <mutex>
#include <unordered_map>

#include "addonErrors.h"
#include "addonGpus.h"
#include "core/device.h"
#include "cpu/cpuDevice.h"
#include "cpu/cpuFeatures.h"
#include "cpu/gemm.h"
#include "cpu/loadQuantised.h"
#ifdef UNSLOTH_CUDA
#include "cuda/cudaDevice.h"
#endif

/** The N-API surface: no mathematics, no policy. engine/native.ts is its typed mirror. */
namespace unsloth {
namespace {

/** Work off the JavaScript thread whose result settles a promise. */
class Task : public Napi::AsyncWorker {
 public:
  using Work = std::function<void()>;
  using Finish = std::function<Napi::Value(Napi::Env)>;
  Task(Napi::Env env, Napi::Object owner, Work work, Finish finish)
      : Napi::AsyncWorker(env), deferred_(Napi::Promise::Deferred::New(env)), owner_(Napi::Persistent(owner)), work_(std::move(work)), finish_(std::move(finish)) {}
  Napi::Promise promise() const { return deferred_.Promise(); }

  void Execute() override {
    try {
      work_();
    } catch (const Error& e) {
      code_ = e.code();
      SetError(e.what());
    } catch (const std::exception& e) {
      SetError(e.what());
    }
  }
  void OnOK() override { deferred_.Resolve(finish_(Env())); }
  void OnError(const Napi::Error& e) override { deferred_.Reject(toJs(Env(), code_, e.Message()).Value()); }

 private:
  Napi::Promise::Deferred deferred_;
  Napi::ObjectReference owner_;  // keeps the device alive while it works
  Work work_;
  Finish finish_;
  std::string code_ = "NATIVE";
};

size_t sizeArgument(const Napi::Value& value) {
  const double number = value.ToNumber().DoubleValue();
  if (!(number >= 0) || number > 9007199254740991.0) fail("a size or offset is not a whole number");
  return static_cast<size_t>(number);
}

class DeviceObject : public Napi::ObjectWrap<DeviceObject> {
 public:
  static Napi::Function define(Napi::Env env) {
    return DefineClass(env, "Device",
                       {
                           InstanceMethod<&DeviceObject::alloc>("alloc"),
                           InstanceMethod<&DeviceObject::free>("free"),
                           InstanceMethod<&DeviceObject::reserved>("reserved"),
                           InstanceMethod<&DeviceObject::write>("write"),
                           InstanceMethod<&DeviceObject::read>("read"),
                           InstanceMethod<&DeviceObject::readLater>("readLater"),
                           InstanceMethod<&DeviceObject::load>("load"),
                           InstanceMethod<&DeviceObject::loadQuantised>("loadQuantised"),
                           InstanceMethod<&DeviceObject::fillUniform>("fillUniform"),
                           InstanceMethod<&DeviceObject::createPlan>("createPlan"),
                           InstanceMethod<&DeviceObject::freePlan>("freePlan"),
                           InstanceMethod<&DeviceObject::run>("run"),
                           InstanceMethod<&DeviceObject::reserveScratch>("reserveScratch"),
                           InstanceMethod<&DeviceObject::synchronise>("synchronise"),
                           InstanceMethod<&DeviceObject::requestStop>("requestStop"),
                           InstanceMethod<&DeviceObject::clearStop>("clearStop"),
                           InstanceMethod<&DeviceObject::dispose>("dispose"),
                       });
  }

  explicit DeviceObject(const Napi::CallbackInfo& info) : Napi::ObjectWrap<DeviceObject>(info) {
    guarded(info.Env(), [&] {
      const std::string kind = info[0].ToString();
      const int number = info[1].ToNumber().Int32Value();
      device_ = open(kind, number);
    });
  }

 private:
  /** `number`: threads of a processor, or which GPU. */
  static std::shared_ptr<Device> open(const std::string& kind, int number) {
#ifdef UNSLOTH_CUDA
    if (kind == "cuda") return std::make_shared<cuda::CudaDevice>(number);
#endif
    if (kind != "cpu") throw Error("GPU", "This build of the addon has no device \"" + kind + "\".");
    if (number < 1 || number > 1024) fail("threads must be between 1 and 1024");
    return std::make_shared<cpu::CpuDevice>(number);
  }

  Device& device() const {
    if (!device_) fail("the device was disposed");
    return *device_;
  }

  Napi::Value alloc(const Napi::CallbackInfo& info) {
    return guarded(info.Env(), [&]() -> Napi::Value {
      const std::string place = info[1].IsUndefined() ? "device" : info[1].ToString().Utf8Value();
      if (place != "device" && place != "host") fail("there is no place \"" + place + "\" for memory");
      const std::lock_guard lock(mutex_);
      return Napi::Number::New(info.Env(), device().alloc(sizeArgument(info[0]), place == "host" ? Place::host : Place::device));
    });
  }

  void free(const Napi::CallbackInfo& info) {
    guarded(info.Env(), [&] {
      const std::lock_guard lock(mutex_);
      device().free(info[0].ToNumber().Int32Value());
    });
  }

  Napi::Value reserved(const Napi::CallbackInfo& info) {
    return guarded(info.Env(), [&]() -> Napi::Value {
      const std::lock_guard lock(mutex_);
      const Reserved all = device().reserved();
      auto result = Napi::Object::New(info.Env());
      result.Set("deviceBytes", static_cast<double>(all.device));
      result.Set("hostBytes", static_cast<double>(all.host));
      result.Set("graphCommands", static_cast<double>(all.graphCommands));
      return result;
    });
  }

  void write(const Napi::CallbackInfo& info) {
    guarded(info.Env(), [&] {
      const auto data = info[2].As<Napi::TypedArray>();
      const auto* bytes = static_cast<const std::byte*>(data.ArrayBuffer().Data()) + data.ByteOffset();
      const std::lock_guard lock(mutex_);
      device().write(info[0].ToNumber().Int32Value(), sizeArgument(info[1]), bytes, data.ByteLength());
    });
  }

  Napi::Value read(const Napi::CallbackInfo& info) {
    return guarded(info.Env(), [&]() -> Napi::Value {
      const size_t count = sizeArgument(info[2]);
      auto result = Napi::ArrayBuffer::New(info.Env(), count);
      const std::lock_guard lock(mutex_);
      device().read(info[0].ToNumber().Int32Value(), sizeArgument(info[1]), result.Data(), count);
      return result;
    });
  }

  Napi::Value readLater(const Napi::CallbackInfo& info) {
    return guarded(info.Env(), [&]() -> Napi::Value {
      const size_t count = sizeArgument(info[2]);
      std::function<void(void*)> finish;
      {
        const std::lock_guard lock(mutex_);
        finish = device().readLater(info[0].ToNumber().Int32Value(), sizeArgument(info[1]), count);
      }
      auto data = std::make_shared<std::vector<std::byte>>(count);
      auto* task = new Task(
          info.Env(), Value(), [data, finish] { finish(data->data()); },
          [data](Napi::Env env) -> Napi::Value {
            auto result = Napi::ArrayBuffer::New(env, data->size());
            std::memcpy(result.Data(), data->data(), data->size());
            return result;
          });
      const auto promise = task->promise();
      task->Queue();
      return promise;
    });
  }

  Napi::Value load(const Napi::CallbackInfo& info) {
    return guarded(info.Env(), [&]() -> Napi::Value {
      const auto list = info[0].As<Napi::Array>();
      auto parts = std::make_shared<std::vector<LoadPart>>();
      for (uint32_t i = 0; i < list.Length(); ++i) parts->push_back(loadPart(list.Get(i).As<Napi::Object>()));
      auto bad = std::make_shared<std::vector<double>>();
      return start(
          info,
          [parts, bad](Device& d) {
            for (const LoadPart& part : *parts) bad->push_back(static_cast<double>(d.load(part)));
          },
          [bad](Napi::Env env) -> Napi::Value {
            auto result = Napi::Float64Array::New(env, bad->size());
            std::copy(bad->begin(), bad->end(), result.Data());
            return result;
          });
    });
  }

  static LoadPart loadPart(const Napi::Object& item) {
    LoadPart part;
    part.path = item.Get("path").ToString();
    part.fileOffset = sizeArgument(item.Get("fileOffset"));
    part.elements = sizeArgument(item.Get("elements"));
    part.source = static_cast<DType>(item.Get("source").ToNumber().Int32Value());
    part.target = static_cast<DType>(item.Get("target").ToNumber().Int32Value());
    part.buffer = item.Get("buffer").ToNumber().Int32Value();
    part.offset = sizeArgument(item.Get("offset"));
    return part;
  }

  /** A part whose numbers are quantised on the way in ("pack", "packRows"), or in the file ("unpack", "scaled"). */
  Napi::Value loadQuantised(const Napi::CallbackInfo& info) {
    return guarded(info.Env(), [&]() -> Napi::Value {
      const auto item = info[0].As<Napi::Object>();
      const int threads = info[1].ToNumber().Int32Value();
      if (threads < 1 || threads > 1024) fail("threads must be between 1 and 1024");
      const std::string kind = item.Get("kind").ToString();
      const auto floats = [&](const char* name) {
        const auto list = item.Get(name).As<Napi::Float32Array>();
        return std::vector<float>(list.Data(), list.Data() + list.ElementLength());
      };
      auto bad = std::make_shared<double>();
      const auto finish = [bad](Napi::Env env) -> Napi::Value { return Napi::Number::New(env, *bad); };
      if (kind == "pack") {
        Pack4Part part{.from = loadPart(item),
                       .fp4 = item.Get("fp4").ToBoolean(),
                       .nested = item.Get("nested").ToBoolean(),
                       .groupShift = item.Get("groupShift").ToNumber().Int32Value(),
                       .codesAt = sizeArgument(item.Get("codesAt")),
                       .absmaxAt = sizeArgument(item.Get("absmaxAt")),
                       .nestedAt = sizeArgument(item.Get("nestedAt"))};
        return start(info, [=](Device& d) { *bad = static_cast<double>(d.load(part)); }, finish);
      }
      if (kind == "packRows") {
        Pack8Part part{.from = loadPart(item),
                       .cols = static_cast<int64_t>(sizeArgument(item.Get("cols"))),
                       .numbersAt = sizeArgument(item.Get("numbersAt")),
                       .scalesAt = sizeArgument(item.Get("scalesAt"))};
        return start(info, [=](Device& d) { *bad = static_cast<double>(d.load(part)); }, finish);
      }
      if (kind == "unpack") {
        cpu::Unpack4Part part{.from = loadPart(item),
                              .rounding = static_cast<DType>(item.Get("rounding").ToNumber().Int32Value()),
                              .blockSize = sizeArgument(item.Get("blockSize")),
                              .code = floats("code"),
                              .absmax = floats("absmax")};
        return start(info, [=](Device& d) { *bad = static_cast<double>(cpu::load(part, d, threads)); }, finish);
      }
      cpu::ScaledPart part{.from = loadPart(item),
                           .fp8 = item.Get("fp8").ToBoolean(),
                           .cols = sizeArgument(item.Get("cols")),
                           .blockRows = sizeArgument(item.Get("blockRows")),
                           .blockCols = sizeArgument(item.Get("blockCols")),
                           .divisor = item.Get("divisor").ToNumber().FloatValue(),
                           .scales = floats("scales")};
      return start(info, [=](Device& d) { *bad = static_cast<double>(cpu::load(part, d, threads)); }, finish);
    });
  }

  Napi::Value fillUniform(const Napi::CallbackInfo& info) {
    return guarded(info.Env(), [&]() -> Napi::Value {
      const int32_t buffer = info[0].ToNumber().Int32Value();
      const size_t offset = sizeArgument(info[1]), elements = sizeArgument(info[2]);
      const auto dtype = static_cast<DType>(info[3].ToNumber().Int32Value());
      const float low = info[4].ToNumber().FloatValue(), high = info[5].ToNumber().FloatValue();
      const uint32_t seed = info[6].ToNumber().Uint32Value(), stream = info[7].ToNumber().Uint32Value();
      return start(
          info, [=](Device& d) { d.fillUniform(buffer, offset, elements, dtype, low, high, seed, stream); },
          [](Napi::Env env) -> Napi::Value { return env.Undefined(); });
    });
  }

  Napi::Value createPlan(const Napi::CallbackInfo& info) {
    return guarded(info.Env(), [&]() -> Napi::Value {
      const auto tensors = info[0].As<Napi::Float64Array>();
      const auto commands = info[1].As<Napi::Int32Array>();
      const auto floats = info[2].As<Napi::Float64Array>();
      const auto handles = info[3].As<Napi::Int32Array>();
      std::vector<int32_t> buffers(handles.Data(), handles.Data() + handles.ElementLength());
      const std::lock_guard lock(mutex_);
      std::vector<size_t> bytes;
      for (const int32_t buffer : buffers) bytes.push_back(device().bytes(buffer));
      plans_[nextPlan_] = std::make_shared<Plan>(decodePlan(tensors.Data(), tensors.ElementLength(), commands.Data(), commands.ElementLength(),
                                                            floats.Data(), floats.ElementLength(), std::move(buffers), bytes));
      return Napi::Number::New(info.Env(), nextPlan_++);
    });
  }

  void freePlan(const Napi::CallbackInfo& info) {
    const auto found = plans_.find(info[0].ToNumber().Int32Value());
    if (found == plans_.end()) return;
    const std::lock_guard lock(mutex_);
    if (device_) device_->forget(*found->second);
    plans_.erase(found);
  }

  void reserveScratch(const Napi::CallbackInfo& info) {
    guarded(info.Env(), [&] {
      const std::lock_guard lock(mutex_);
      device().reserveScratch(sizeArgument(info[0]));
    });
  }

  /** Resolves when everything that was started is done. */
  Napi::Value synchronise(const Napi::CallbackInfo& info) {
    return guarded(info.Env(), [&] {
      return start(info, [](Device& d) { d.synchronise(); }, [](Napi::Env env) -> Napi::Value { return env.Undefined(); });
    });
  }

  Napi::Value run(const Napi::CallbackInfo& info) {
    return guarded(info.Env(), [&]() -> Napi::Value {
      const auto found = plans_.find(info[0].ToNumber().Int32Value());
      if (found == plans_.end()) fail("there is no such plan");
      const auto numbers = info[1].As<Napi::Int32Array>();
      if (numbers.ElementLength() != 6) fail("run takes three row counts with padding and three without");
      const Dims dims{numbers[0], numbers[1], numbers[2]}, live{numbers[3], numbers[4], numbers[5]};
      const auto first = static_cast<int64_t>(sizeArgument(info[2])), last = static_cast<int64_t>(sizeArgument(info[3]));
      const bool profile = info[4].ToBoolean();
      auto result = std::make_shared<RunResult>();
      return start(
          info, [=, plan = found->second](Device& d) { *result = d.run(*plan, dims, live, first, last, profile); },
          [result](Napi::Env env) -> Napi::Value {
            auto object = Napi::Object::New(env);
            object.Set("executed", static_cast<double>(result->executed));
            object.Set("stopped", result->stopped);
            auto seconds = Napi::Float64Array::New(env, result->seconds.size());
            std::copy(result->seconds.begin(), result->seconds.end(), seconds.Data());
            object.Set("seconds", seconds);
            return object;
          });
    });
  }

  void requestStop(const Napi::CallbackInfo& info) {
    guarded(info.Env(), [&] { device().requestStop(); });
  }
  void clearStop(const Napi::CallbackInfo& info) {
    guarded(info.Env(), [&] { device().clearStop(); });
  }

  /** Frees all memory; work in progress keeps its own reference and finishes first. */
  void dispose(const Napi::CallbackInfo&) {
    plans_.clear();
    device_.reset();
  }

  template <typename Work>
  Napi::Value start(const Napi::CallbackInfo& info, Work work, Task::Finish finish) {
    device();
    auto* task = new Task(
        info.Env(), Value(),
        [this, held = device_, work] {
          const std::lock_guard lock(mutex_);
          work(*held);
        },
        std::move(finish));
    const auto promise = task->promise();
    task->Queue();
    return promise;
  }

  std::shared_ptr<Device> device_;
  std::mutex mutex_;  // one command list, load or copy at a time
  std::unordered_map<int32_t, std::shared_ptr<Plan>> plans_;
  int32_t nextPlan_ = 1;
};

/** What this build and this processor can do; engine/native.ts checks the command list against its own. */
Napi::Value describe(const Napi::CallbackInfo& info) {
  const Napi::Env env = info.Env();
  return guarded(env, [&]() -> Napi::Value {
    auto result = Napi::Object::New(env);
    auto names = Napi::Array::New(env);
    for (int32_t op = 0; op < static_cast<int32_t>(Op::count); ++op) names.Set(static_cast<uint32_t>(op), opName(static_cast<Op>(op)));
    result.Set("commands", names);
    const cpu::CpuFeatures& features = cpu::cpuFeatures();
    auto processor = Napi::Object::New(env);
    processor.Set("avx2", features.avx2);
    processor.Set("avx512", features.avx512);
    processor.Set("avx512bf16", features.avx512bf16);
    processor.Set("amx", features.amx);
    processor.Set("float32Kernel", cpu::gemmKernelName(cpu::Precision::float32));
    processor.Set("bfloat16Kernel", cpu::gemmKernelName(cpu::Precision::bfloat16));
    result.Set("cpu", processor);
    result.Set("cuda", describeCuda(env));
    return result;
  });
}

Napi::Object initialise(Napi::Env env, Napi::Object exports) {
  exports.Set("Device", DeviceObject::define(env));
  exports.Set("describe", Napi::Function::New(env, describe));
  exportGpuFunctions(env, exports);
  return exports;
}

}  // namespace

NODE_API_MODULE(kernels, initialise)

}  // namespace unsloth
