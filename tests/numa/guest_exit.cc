// guest-exit STATUS: ends a qemu that has an isa-debug-exit device at port 0xf4. The device makes 2 * N + 1
// of the N that is written to it. N is STATUS + 1: qemu's own failure is 1, and must not look like a success.
// Statuses above 126 become 126.
#include <sys/io.h>
#include <termios.h>
#include <unistd.h>

#include <algorithm>
#include <cstdio>
#include <cstdlib>

int main(int argc, char** argv) {
  const int status = argc == 2 ? std::atoi(argv[1]) : 126;
  if (status > 128) std::printf("guest: ended by signal %d\n", status - 128);
  std::fflush(stdout);
  tcdrain(STDOUT_FILENO);  // what is still in the serial port's buffer would be lost
  if (ioperm(0xf4, 4, 1) == 0) outb(static_cast<unsigned char>(std::clamp(status, 0, 126) + 1), 0xf4);
  std::perror("guest-exit");
  return 1;  // init ends: the guest panics
}
