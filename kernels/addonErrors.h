#pragma once
#include <napi.h>

#include "core/error.h"

namespace unsloth {

inline Napi::Error toJs(Napi::Env env, const std::string& code, const std::string& message) {
  Napi::Error error = Napi::Error::New(env, message);
  error.Value().Set("code", code);
  return error;
}

/** Runs `fn` and turns a C++ exception into a JavaScript error that carries its code. */
template <typename Fn>
auto guarded(Napi::Env env, Fn fn) {
  try {
    return fn();
  } catch (const Error& e) {
    throw toJs(env, e.code(), e.what());
  } catch (const Napi::Error&) {
    throw;
  } catch (const std::exception& e) {
    throw toJs(env, "NATIVE", e.what());
  }
}

}  // namespace unsloth
