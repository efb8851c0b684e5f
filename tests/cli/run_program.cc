#include "cli/run_program.h"

#include <fcntl.h>
#include <gtest/gtest.h>
#include <sys/wait.h>
#include <unistd.h>

#include <cstdlib>
#include <fstream>
#include <sstream>

namespace jewel {
namespace {

// Files instead of pipes: no deadlock whatever the program prints first.
class TemporaryFile {
 public:
  TemporaryFile() : fd_(::mkstemp(path_)) { EXPECT_GE(fd_, 0); }
  ~TemporaryFile() {
    ::close(fd_);
    ::unlink(path_);
  }
  TemporaryFile(const TemporaryFile&) = delete;
  TemporaryFile& operator=(const TemporaryFile&) = delete;

  int fd() const { return fd_; }
  std::string text() const {
    std::ostringstream text;
    text << std::ifstream(path_, std::ios::binary).rdbuf();
    return text.str();
  }

 private:
  char path_[32] = "/tmp/jewel_cli_XXXXXX";
  int fd_;
};

}  // namespace

ProgramOutput run_program(const std::vector<std::string>& arguments, const std::string& input) {
  TemporaryFile in, out, err;
  EXPECT_EQ(::write(in.fd(), input.data(), input.size()), static_cast<ssize_t>(input.size()));
  ::lseek(in.fd(), 0, SEEK_SET);
  std::vector<std::string> words = {JEWEL_BINARY};
  words.insert(words.end(), arguments.begin(), arguments.end());
  std::vector<char*> argv;
  for (std::string& word : words) argv.push_back(word.data());
  argv.push_back(nullptr);

  const pid_t child = ::fork();
  if (child == 0) {
    ::dup2(in.fd(), STDIN_FILENO);
    ::dup2(out.fd(), STDOUT_FILENO);
    ::dup2(err.fd(), STDERR_FILENO);
    ::execv(JEWEL_BINARY, argv.data());
    ::_exit(127);
  }
  int status = 0;
  EXPECT_EQ(::waitpid(child, &status, 0), child);
  ProgramOutput result;
  result.exit_code = WIFEXITED(status) ? WEXITSTATUS(status) : 128 + WTERMSIG(status);
  result.out = out.text();
  result.err = err.text();
  return result;
}

}  // namespace jewel
