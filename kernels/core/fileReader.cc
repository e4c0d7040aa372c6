#include "fileReader.h"

#include <algorithm>
#include <cerrno>
#include <cstring>

#include "error.h"

#ifdef _WIN32
#define WIN32_LEAN_AND_MEAN
#include <windows.h>
#else
#include <fcntl.h>
#include <unistd.h>
#endif

namespace unsloth {

#ifdef _WIN32

FileReader::FileReader(const std::string& path) : path_(path) {
  const int length = MultiByteToWideChar(CP_UTF8, 0, path.c_str(), -1, nullptr, 0);
  std::wstring wide(static_cast<size_t>(length), L'\0');
  MultiByteToWideChar(CP_UTF8, 0, path.c_str(), -1, wide.data(), length);
  handle_ = CreateFileW(wide.c_str(), GENERIC_READ, FILE_SHARE_READ, nullptr, OPEN_EXISTING, 0, nullptr);
  if (handle_ == INVALID_HANDLE_VALUE) throw Error("FILE_NOT_FOUND", "Cannot open " + path + ".");
}

FileReader::~FileReader() { CloseHandle(handle_); }

void FileReader::read(uint64_t offset, void* data, uint64_t bytes) {
  auto* at = static_cast<char*>(data);
  while (bytes > 0) {
    OVERLAPPED where{};
    where.Offset = static_cast<DWORD>(offset);
    where.OffsetHigh = static_cast<DWORD>(offset >> 32);
    DWORD got = 0;
    const DWORD want = static_cast<DWORD>(std::min<uint64_t>(bytes, 1u << 30));
    if (!ReadFile(handle_, at, want, &got, &where) || got == 0)
      throw Error("FILE_FORMAT", path_ + " ends before the data it promises.");
    at += got;
    offset += got;
    bytes -= got;
  }
}

#else

FileReader::FileReader(const std::string& path) : path_(path), handle_(open(path.c_str(), O_RDONLY | O_CLOEXEC)) {
  if (handle_ < 0) throw Error("FILE_NOT_FOUND", "Cannot open " + path + ": " + std::strerror(errno) + ".");
}

FileReader::~FileReader() { close(handle_); }

void FileReader::read(uint64_t offset, void* data, uint64_t bytes) {
  auto* at = static_cast<char*>(data);
  while (bytes > 0) {
    const ssize_t got = pread(handle_, at, std::min<uint64_t>(bytes, 1u << 30), static_cast<off_t>(offset));
    if (got < 0 && errno == EINTR) continue;
    if (got < 0) throw Error("FILE_FORMAT", "Cannot read " + path_ + ": " + std::strerror(errno) + ".");
    if (got == 0) throw Error("FILE_FORMAT", path_ + " ends before the data it promises.");
    at += got;
    offset += static_cast<uint64_t>(got);
    bytes -= static_cast<uint64_t>(got);
  }
}

#endif

}  // namespace unsloth
