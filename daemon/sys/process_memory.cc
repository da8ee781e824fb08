#include "daemon/sys/process_memory.h"

#include <dirent.h>
#include <fcntl.h>
#include <sys/stat.h>
#include <unistd.h>

#include <algorithm>
#include <cerrno>
#include <charconv>
#include <cstdio>
#include <cstdlib>
#include <cstring>
#include <string_view>

#include "daemon/wire/message.h"

namespace uzswap {
namespace {

zp::Result<zp::UniqueFd> OpenProc(pid_t pid, const char* name, const char* op) {
  char path[64];
  (void)snprintf(path, sizeof(path), "/proc/%d/%s", static_cast<int>(pid), name);
  zp::UniqueFd fd(open(path, O_RDONLY | O_CLOEXEC));
  if (fd.valid()) return fd;
  if (errno == EACCES || errno == EPERM) return zp::Error{zp::Errc::kPermission, errno, op};
  if (errno == ENOENT || errno == ESRCH) return zp::Error{zp::Errc::kGone, errno, op};
  return zp::ErrnoError(op);
}

// seq_file contents by pread; an offset that is not the file's own restarts the kernel's iteration at 0 only
// once.
zp::Result<std::string> ReadAll(int fd, const char* op) {
  std::string text;
  char chunk[32 * 1024];
  off_t offset = 0;
  for (;;) {
    const ssize_t got = pread(fd, chunk, sizeof(chunk), offset);
    if (got < 0) return zp::ErrnoError(op);
    if (got == 0) return text;
    text.append(chunk, static_cast<size_t>(got));
    offset += got;
  }
}

bool ParseHex(std::string_view text, uint64_t* value, size_t* used) {
  const auto [end, error] = std::from_chars(text.data(), text.data() + text.size(), *value, 16);
  *used = static_cast<size_t>(end - text.data());
  return error == std::errc();
}

// "55d0-55f0 rw-p 00000000 00:00 0    [heap]"
bool ParseMapLine(std::string_view line, MapEntry* entry) {
  size_t used = 0;
  if (!ParseHex(line, &entry->start, &used) || used >= line.size() || line[used] != '-') return false;
  line.remove_prefix(used + 1);
  if (!ParseHex(line, &entry->end, &used) || used + 6 > line.size() || line[used] != ' ') return false;
  line.remove_prefix(used + 1);
  const std::string_view permissions = line.substr(0, 4);
  line.remove_prefix(4);
  // offset, device, inode, name
  std::string_view fields[3];
  for (auto& field : fields) {
    const size_t from = line.find_first_not_of(' ');
    if (from == std::string_view::npos) return false;
    const size_t to = line.find(' ', from);
    field = line.substr(from, to == std::string_view::npos ? to : to - from);
    line.remove_prefix(to == std::string_view::npos ? line.size() : to);
  }
  const size_t name_at = line.find_first_not_of(' ');
  const std::string_view name = name_at == std::string_view::npos ? std::string_view() : line.substr(name_at);
  const bool plain = name.empty() || name == "[heap]" || name.starts_with("[anon:");
  const bool anonymous = fields[1] == "00:00" && fields[2] == "0" && plain;
  entry->private_rw_anonymous = anonymous && permissions == "rw-p";
  entry->inaccessible = permissions == "---p";
  entry->private_anonymous = anonymous && (permissions == "rw-p" || permissions == "r--p");
  return true;
}

template <typename F>
void ForEachLine(std::string_view text, F&& f) {
  while (!text.empty()) {
    const size_t end = text.find('\n');
    f(text.substr(0, end));
    if (end == std::string_view::npos) break;
    text.remove_prefix(end + 1);
  }
}

// f(mapping, the text of its VmFlags line) for each mapping of an smaps text.
template <typename F>
void ForEachFlags(std::string_view smaps, F&& f) {
  MapEntry current;
  ForEachLine(smaps, [&](std::string_view line) {
    MapEntry entry;
    if (line.starts_with("VmFlags:")) {
      f(current, line);
    } else if (ParseMapLine(line, &entry)) {
      current = entry;
    }
  });
}

// The status file of the thread named `comm`; invalid if there is none.
zp::UniqueFd OpenTaskStatus(pid_t pid, const char* comm) {
  char path[64];
  (void)snprintf(path, sizeof(path), "/proc/%d/task", static_cast<int>(pid));
  DIR* tasks = opendir(path);
  zp::UniqueFd found;
  while (tasks != nullptr && !found.valid()) {
    const dirent* entry = readdir(tasks);
    if (entry == nullptr) break;
    if (*entry->d_name == '.' || ReadComm(atoi(entry->d_name)) != comm) continue;
    const zp::UniqueFd task(openat(dirfd(tasks), entry->d_name, O_RDONLY | O_DIRECTORY | O_CLOEXEC));
    found.reset(openat(task.get(), "status", O_RDONLY | O_CLOEXEC));
  }
  if (tasks != nullptr) closedir(tasks);
  return found;
}

}  // namespace

zp::Result<ProcessMemory> ProcessMemory::Open(pid_t pid) {
  ProcessMemory memory;
  memory.maps_ = ZP_TRY(OpenProc(pid, "maps", "opening /proc/PID/maps"));
  memory.smaps_ = ZP_TRY(OpenProc(pid, "smaps", "opening /proc/PID/smaps"));
  memory.pagemap_ = ZP_TRY(OpenProc(pid, "pagemap", "opening /proc/PID/pagemap"));
  memory.mem_ = ZP_TRY(OpenProc(pid, "mem", "opening /proc/PID/mem"));
  memory.statm_ = ZP_TRY(OpenProc(pid, "statm", "opening /proc/PID/statm"));
  memory.agent_status_ = OpenTaskStatus(pid, wire::kAgentThreadName);
  std::vector<page_region> none;
  auto scan = memory.ScanPresent(0x10000, 0x11000, 1, &none);
  if (!scan.ok())
    return zp::Error{zp::Errc::kUnsupported, scan.error().sys_errno, "PAGEMAP_SCAN (Linux 6.7)"};
  return memory;
}

zp::Result<ProcessMemory> ProcessMemory::Adopt(std::array<zp::UniqueFd, kFiles> files) {
  ProcessMemory memory;
  zp::UniqueFd* const members[kFiles] = {&memory.maps_, &memory.smaps_, &memory.pagemap_,
                                         &memory.mem_,  &memory.statm_, &memory.agent_status_};
  for (size_t i = 0; i < kFiles; ++i) {
    if (!files[i].valid() && members[i] != &memory.agent_status_)
      return zp::Error{zp::Errc::kInvalid, 0, "the files of a process's memory"};
    *members[i] = std::move(files[i]);
  }
  return memory;
}

zp::Result<std::vector<MapEntry>> ProcessMemory::ReadMaps() const {
  const std::string text = ZP_TRY(ReadAll(maps_.get(), "reading maps"));
  std::vector<MapEntry> maps;
  ForEachLine(text, [&](std::string_view line) {
    MapEntry entry;
    if (ParseMapLine(line, &entry)) maps.push_back(entry);
  });
  return maps;
}

bool ProcessMemory::HasMapped(int fd) const {
  struct stat file {};
  const auto text = ReadAll(maps_.get(), "reading maps");
  if (!text.ok() || fstat(fd, &file) != 0) return false;
  const std::string inode = " " + std::to_string(file.st_ino) + " ";
  bool found = false;
  ForEachLine(*text, [&](std::string_view line) {
    // Inode numbers of other file systems may be the same.
    found = found ||
            (line.find(inode) != std::string_view::npos && line.find("/memfd:") != std::string_view::npos);
  });
  return found;
}

bool ProcessMemory::IsPlainMemory(uint64_t start, uint64_t bytes) const {
  const auto maps = ReadMaps();
  if (!maps.ok()) return false;
  return std::any_of(maps->begin(), maps->end(), [&](const MapEntry& entry) {
    return entry.private_rw_anonymous && entry.start <= start && start + bytes <= entry.end;
  });
}

zp::Result<std::vector<MapEntry>> ProcessMemory::ReadWipeOnFork() const {
  const std::string text = ZP_TRY(ReadAll(smaps_.get(), "reading smaps"));
  std::vector<MapEntry> found;
  ForEachFlags(text, [&](const MapEntry& entry, std::string_view flags) {
    if (flags.find(" wf") != std::string_view::npos) found.push_back(entry);
  });
  return found;
}

zp::Result<uint64_t> ProcessMemory::ScanPresent(uint64_t start, uint64_t end, uint64_t max_pages,
                                                std::vector<page_region>* out) const {
  return Scan(start, end, max_pages, PAGE_IS_PRESENT, out);
}

zp::Status ProcessMemory::ScanOccupied(uint64_t start, uint64_t end, std::vector<page_region>* out) const {
  // So many pages have no more runs than one scan returns.
  const uint64_t last = std::min(end, start + 2 * kRunsPerScan * uint64_t{4096});
  ZP_TRY(Scan(start, last, 2 * kRunsPerScan, PAGE_IS_PRESENT | PAGE_IS_SWAPPED, out));
  return zp::OkStatus();
}

// Pages in one of `states`.
zp::Result<uint64_t> ProcessMemory::Scan(uint64_t start, uint64_t end, uint64_t max_pages, uint64_t states,
                                         std::vector<page_region>* out) const {
  page_region regions[kRunsPerScan];
  pm_scan_arg arg{};
  arg.size = sizeof(arg);
  arg.start = start;
  arg.end = end;
  arg.vec = reinterpret_cast<uint64_t>(regions);
  arg.vec_len = kRunsPerScan;
  arg.max_pages = max_pages;
  arg.category_inverted = PAGE_IS_FILE | PAGE_IS_PFNZERO;
  arg.category_mask = PAGE_IS_FILE | PAGE_IS_PFNZERO;
  arg.category_anyof_mask = states;
  arg.return_mask = states;
  const int found = ioctl(pagemap_.get(), PAGEMAP_SCAN, &arg);
  if (found < 0) return zp::ErrnoError("PAGEMAP_SCAN");
  out->insert(out->end(), regions, regions + found);
  return arg.walk_end;
}

bool ProcessMemory::Read(uint64_t address, void* out, size_t bytes) const {
  return pread(mem_.get(), out, bytes, static_cast<off_t>(address)) == static_cast<ssize_t>(bytes);
}

uint64_t ProcessMemory::ResidentBytes() const {
  char text[128];
  const ssize_t got = pread(statm_.get(), text, sizeof(text) - 1, 0);
  if (got <= 0) return 0;
  text[got] = 0;
  const char* second = strchr(text, ' ');
  return second == nullptr ? 0 : strtoull(second, nullptr, 10) * 4096;
}

uint64_t ProcessMemory::AgentFilters() const {
  constexpr char kKey[] = "\nSeccomp_filters:";
  char text[4096];
  const ssize_t got = agent_status_.valid() ? pread(agent_status_.get(), text, sizeof(text) - 1, 0) : -1;
  if (got <= 0) return 0;
  text[got] = 0;
  const char* line = strstr(text, kKey);
  return line == nullptr ? 0 : strtoull(line + sizeof(kKey) - 1, nullptr, 10);
}

std::string ReadComm(pid_t pid) {
  auto fd = OpenProc(pid, "comm", "opening comm");
  if (!fd.ok()) return {};
  char text[32];
  const ssize_t got = read(fd->get(), text, sizeof(text));
  if (got <= 0) return {};
  std::string name(text, static_cast<size_t>(got));
  while (!name.empty() && name.back() == '\n') name.pop_back();
  for (char& c : name) {
    if (c < 0x20 || c > 0x7e) c = '?';  // its owner chose it: nothing for a terminal or a JSON text
  }
  return name;
}

int ReadTaskCpu(pid_t pid, int tid) {
  char path[64];
  (void)snprintf(path, sizeof(path), "/proc/%d/task/%d/stat", static_cast<int>(pid), tid);
  const zp::UniqueFd fd(open(path, O_RDONLY | O_CLOEXEC));
  char text[1024];
  const ssize_t got = fd.valid() ? read(fd.get(), text, sizeof(text) - 1) : -1;
  if (got <= 0) return -1;
  text[got] = 0;
  // Field 39, "processor"; field 2 is "(comm)", which may hold anything: count from its last ')'.
  const char* p = strrchr(text, ')');
  for (int field = 2; p != nullptr && field < 39; ++field) p = strchr(p + 1, ' ');
  return p == nullptr ? -1 : atoi(p + 1);
}

}  // namespace uzswap
