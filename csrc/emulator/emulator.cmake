# Builds _cuda_emulated: the CUDA sources as C++, run by the emulator (docs/cuda.md), and _emulator_selftest, kernels that
# test it. Built on the machine that runs them and never installed.
add_library(msvit_emulator OBJECT
  emulator/elements.cpp
  emulator/fiber.cpp
  emulator/global_memory.cpp
  emulator/launch.cpp
  emulator/matrices.cpp
  emulator/operations.cpp
  emulator/places.cpp
  emulator/schedule.cpp
  emulator/shared_memory.cpp
  emulator/worker.cpp
)
find_package(Threads REQUIRED)
add_library(msvit_emulator_options INTERFACE)
target_include_directories(msvit_emulator_options INTERFACE ${CMAKE_CURRENT_SOURCE_DIR} ${CMAKE_CURRENT_SOURCE_DIR}/emulator)
target_compile_definitions(msvit_emulator_options INTERFACE
  MSVIT_EMULATE_CUDA MSVIT_CUDA_ARCHS="emulated" ${MSVIT_CUDA_DEFINITIONS})
# Line numbers for the messages about races.
target_compile_options(msvit_emulator_options INTERFACE -Wall -Wextra -Wno-unknown-pragmas -g1)
target_link_libraries(msvit_emulator_options INTERFACE Threads::Threads ${CMAKE_DL_LIBS})
if(MSVIT_SANITIZE)
  target_compile_options(msvit_emulator_options INTERFACE -fsanitize=${MSVIT_SANITIZE} -fno-sanitize-recover=all -fno-omit-frame-pointer)
  target_link_options(msvit_emulator_options INTERFACE -fsanitize=${MSVIT_SANITIZE})
else()
  # Puts calls before loads and stores, which instrumentation.cpp takes. Not linked with these sanitizers.
  set(MSVIT_INSTRUMENT -fsanitize=thread,alignment,bounds)
  target_sources(msvit_emulator PRIVATE emulator/instrumentation.cpp)
endif()
target_link_libraries(msvit_emulator PRIVATE msvit_emulator_options)
check_cxx_compiler_flag(-march=native MSVIT_COMPILER_KNOWS_NATIVE)
if(MSVIT_COMPILER_KNOWS_NATIVE)
  set_source_files_properties(emulator/matrices.cpp PROPERTIES COMPILE_OPTIONS -march=native)
endif()

# Kernels, as C++ with calls before loads and stores.
function(msvit_add_emulated_module name)
  pybind11_add_module(${name} MODULE NO_EXTRAS EXCLUDE_FROM_ALL emulator/bindings_${name}.cpp $<TARGET_OBJECTS:msvit_emulator>)
  target_link_libraries(${name} PRIVATE msvit_emulator_options)
  target_compile_options(${name} PRIVATE -O1)  # the bindings: with sanitizers -O3 takes minutes
  add_library(${name}_kernels OBJECT EXCLUDE_FROM_ALL ${ARGN})
  set_source_files_properties(${ARGN} PROPERTIES LANGUAGE CXX)
  target_link_libraries(${name}_kernels PRIVATE msvit_emulator_options)
  target_compile_options(${name}_kernels PRIVATE ${MSVIT_INSTRUMENT} -O1)  # -O2 compiles longer than it saves
  target_sources(${name} PRIVATE $<TARGET_OBJECTS:${name}_kernels>)
endfunction()

set(MSVIT_EMULATED_SOURCES ${MSVIT_CUDA_SOURCES})
list(REMOVE_ITEM MSVIT_EMULATED_SOURCES cuda/device.cu)  # asks the CUDA runtime; launch.cpp answers instead
msvit_add_emulated_module(_cuda_emulated ${MSVIT_EMULATED_SOURCES})
msvit_add_emulated_module(_emulator_selftest emulator/selftest.cu)
