// Usage: corners --list | corners NAME SOCKET native|uzswap
//
// Runs one corner (corner.h). SOCKET is the descriptor of a socket to the driver, corners_test.py.
#include <cstdio>
#include <cstdlib>
#include <cstring>

#include "tests/e2e/corners/corner.h"

int main(int argc, char** argv) {
  using namespace uzswap::corners;
  const bool list = argc == 2 && strcmp(argv[1], "--list") == 0;
  if (!list && argc < 4) return 2;
  for (const auto& corners : {MappingCorners(), ProtectionCorners(), AdviceCorners(), ProcessCorners(),
                              ThreadCorners(), InputOutputCorners(), KernelCorners()}) {
    for (const Corner& corner : corners) {
      if (list) {
        puts(corner.name);
      } else if (strcmp(corner.name, argv[1]) == 0) {
        Connect(atoi(argv[2]), strcmp(argv[3], "native") == 0);
        corner.run();
        return 0;
      }
    }
  }
  return list ? 0 : 2;
}
