// Makes the kernels work in a child process of fork().
#pragma once

namespace msvit {

// Once in a process: fork() then first ends the OpenMP threads of the calling thread. The next parallel region, in the
// parent or in the child, starts new ones.
void end_threads_before_fork();

}  // namespace msvit
