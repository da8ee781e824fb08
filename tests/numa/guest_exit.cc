// guest-exit STATUS: ends a qemu that has an isa-debug-exit device at port 0xf4; qemu's exit status is 2 *
// STATUS + 1. Statuses above 127 would come out as others: they become 127.
#include <sys/io.h>
#include <termios.h>
#include <unistd.h>

#include <algorithm>
#include <cstdio>
#include <cstdlib>

int main(int argc, char** argv) {
  const int status = argc == 2 ? std::atoi(argv[1]) : 127;
  if (status > 127) std::printf("guest: ended by signal %d\n", status - 128);
  std::fflush(stdout);
  tcdrain(STDOUT_FILENO);  // what is still in the serial port's buffer would be lost
  if (ioperm(0xf4, 4, 1) == 0) outb(static_cast<unsigned char>(std::clamp(status, 0, 127)), 0xf4);
  std::perror("guest-exit");
  return 1;  // init ends: the guest panics
}
