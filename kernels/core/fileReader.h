#pragma once
#include <cstdint>
#include <string>

namespace unsloth {

/** Positioned reads from a file; a short file is an error that names it. */
class FileReader {
 public:
  explicit FileReader(const std::string& path);
  ~FileReader();
  FileReader(const FileReader&) = delete;
  FileReader& operator=(const FileReader&) = delete;
  void read(uint64_t offset, void* data, uint64_t bytes);

 private:
  std::string path_;
#ifdef _WIN32
  void* handle_;
#else
  int handle_;
#endif
};

}  // namespace unsloth
