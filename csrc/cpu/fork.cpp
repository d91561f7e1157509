// GCC's OpenMP runtime keeps the threads of a region for the next one. A child of fork() inherits the list of these
// threads, but not the threads, and would wait for them forever. This includes threads that torch's operators started,
// because torch and the kernels share one runtime. Clang's runtime deals with fork() itself.
#include "fork.h"

#ifdef _OPENMP
#include <omp.h>
#include <pthread.h>
#endif

namespace msvit {

void end_threads_before_fork() {
#ifdef _OPENMP
  // Inside a parallel region the call does nothing, but then neither does a child wait: its regions are nested ones,
  // which do not use the kept threads.
  pthread_atfork([] { omp_pause_resource_all(omp_pause_soft); }, nullptr, nullptr);
#endif
}

}  // namespace msvit
