// Functions of the emulator in both modules.
#pragma once

#include <pybind11/pybind11.h>

#include <map>

#include "devices.h"
#include "places.h"
#include "statistics.h"

namespace msvit::emulator {

inline pybind11::list statistics() {
  static std::map<const void*, std::string> names;
  pybind11::list result;
  for (const LaunchStatistics& launch : take_statistics()) {
    std::string& name = names[launch.kernel];
    if (name.empty()) name = locate(launch.kernel).function;
    pybind11::dict row;
    row["kernel"] = name;
    row["blocks"] = launch.blocks;
    row["threads"] = launch.threads;
    row["shared_bytes"] = launch.shared_bytes;
    row["mma"] = launch.counts.mma;
    row["matrix_loads"] = launch.counts.matrix_loads;
    row["matrix_load_conflicts"] = launch.counts.matrix_load_wavefronts - 4 * launch.counts.matrix_loads;
    row["shared_stores"] = launch.counts.shared_stores;
    row["shared_store_conflicts"] = launch.counts.shared_store_wavefronts - launch.counts.shared_stores;
    row["shuffles"] = launch.counts.shuffles;
    row["copy_async_bytes"] = launch.counts.copy_async_bytes;
    row["barriers"] = launch.counts.barriers;
    row["plain_shared_bytes"] = launch.counts.plain_shared_bytes;
    row["plain_global_bytes_read"] = launch.counts.plain_global_bytes_read;
    row["plain_global_bytes_written"] = launch.counts.plain_global_bytes_written;
    result.append(row);
  }
  return result;
}

inline void define_emulator(pybind11::module_& m) {
  m.def(
      "emulator_device",
      [](int num_multiprocessors, int shared_memory_bytes) {
        return find_or_add_device({num_multiprocessors, shared_memory_bytes});
      },
      "Number of a device with so many multiprocessors, of which a block may have so much shared memory.",
      pybind11::arg("num_multiprocessors"), pybind11::arg("shared_memory_bytes"));
  m.def("emulator_statistics", &statistics,
        "Counts of each launch since the last call: matrix products, bytes, barriers, bank conflicts.");
}

}  // namespace msvit::emulator
