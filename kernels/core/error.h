#pragma once
#include <stdexcept>
#include <string>

namespace unsloth {

/** A failure with the code that TypeScript maps to an UnslothError (see src/shared/errors.ts). */
class Error : public std::runtime_error {
 public:
  Error(std::string code, const std::string& message) : std::runtime_error(message), code_(std::move(code)) {}
  const std::string& code() const { return code_; }

 private:
  std::string code_;
};

[[noreturn]] inline void fail(const std::string& message) { throw Error("NATIVE", message); }

}  // namespace unsloth
