// The arithmetic and the layouts of mma.m16n8k16 and ldmatrix, for the 32 lanes of a warp at once.
#include <algorithm>
#include <array>
#include <cstring>

#include "worker.h"

namespace msvit::emulator {

namespace {

constexpr int kM = 16, kN = 8, kK = 16;

float bf16_to_float(uint16_t bits) { return bit_cast<float>(static_cast<uint32_t>(bits) << 16); }

// Writes the two elements of a register to neighbouring floats.
template <bool IS_BF16>
void spread(float* to, int64_t step, uint32_t pair) {
  const auto low = static_cast<uint16_t>(pair), high = static_cast<uint16_t>(pair >> 16);
  to[0] = IS_BF16 ? bf16_to_float(low) : fp16_to_float(low);
  to[step] = IS_BF16 ? bf16_to_float(high) : fp16_to_float(high);
}

template <bool IS_BF16>
void multiply(void* const (&operands)[kWarpSize]) {
  alignas(64) float a[kM][kK], b[kK][kN], d[kM][kN];
  for (int lane = 0; lane < kWarpSize; ++lane) {
    const auto& own = *static_cast<const MmaOperands*>(operands[lane]);
    const int row = lane / 4, column = 2 * (lane % 4);
    spread<IS_BF16>(&a[row][column], 1, own.a[0]);
    spread<IS_BF16>(&a[row + 8][column], 1, own.a[1]);
    spread<IS_BF16>(&a[row][column + 8], 1, own.a[2]);
    spread<IS_BF16>(&a[row + 8][column + 8], 1, own.a[3]);
    spread<IS_BF16>(&b[column][row], kN, own.b0);
    spread<IS_BF16>(&b[column + 8][row], kN, own.b1);
    std::memcpy(&d[row][column], own.d, 2 * sizeof(float));
    std::memcpy(&d[row + 8][column], own.d + 2, 2 * sizeof(float));
  }
  using Row = float __attribute__((vector_size(kN * sizeof(float))));
  for (int i = 0; i < kM; ++i) {
    Row sum = {};
    for (int k = 0; k < kK; ++k) sum += a[i][k] * *reinterpret_cast<const Row*>(b[k]);
    *reinterpret_cast<Row*>(d[i]) += sum;
  }
  for (int lane = 0; lane < kWarpSize; ++lane) {
    const auto& own = *static_cast<const MmaOperands*>(operands[lane]);
    const int row = lane / 4, column = 2 * (lane % 4);
    std::memcpy(own.d, &d[row][column], 2 * sizeof(float));
    std::memcpy(own.d + 2, &d[row + 8][column], 2 * sizeof(float));
  }
}

const MatrixLoad& as_load(const void* operands) { return *static_cast<const MatrixLoad*>(operands); }

}  // namespace

void multiply(void* const (&operands)[kWarpSize]) {
  static_cast<const MmaOperands*>(operands[0])->is_bf16 ? multiply<true>(operands) : multiply<false>(operands);
}

void load(const SharedMemory& shared, void* const (&operands)[kWarpSize]) {
  for (int matrix = 0; matrix < 4; ++matrix) {
    uint16_t elements[8][8];
    for (int row = 0; row < 8; ++row)
      std::memcpy(elements[row], shared.at(as_load(operands[8 * matrix + row]).address), sizeof elements[row]);
    for (int lane = 0; lane < kWarpSize; ++lane) {
      const MatrixLoad& own = as_load(operands[lane]);
      const int i = lane / 4, j = 2 * (lane % 4);
      const uint32_t low = own.transposed ? elements[j][i] : elements[i][j];
      const uint32_t high = own.transposed ? elements[j + 1][i] : elements[i][j + 1];
      own.r[matrix] = low | high << 16;
    }
  }
}

// Each matrix takes as many passes over the 32 banks as different rows meet in the same four banks.
int matrix_load_wavefronts(void* const (&operands)[kWarpSize]) {
  int total = 0;
  for (int matrix = 0; matrix < 4; ++matrix) {
    std::array<uint32_t, 8> rows;
    for (int row = 0; row < 8; ++row) rows[row] = as_load(operands[8 * matrix + row]).address / 16;
    std::sort(rows.begin(), rows.end());
    const auto end = std::unique(rows.begin(), rows.end());
    std::array<int, 8> passes{};
    for (auto row = rows.begin(); row != end; ++row) ++passes[*row % 8];
    total += *std::max_element(passes.begin(), passes.end());
  }
  return total;
}

// As many passes as different words meet in one bank.
int store_wavefronts(const std::vector<uint32_t>& addresses) {
  std::vector<uint32_t> words;
  for (const uint32_t address : addresses) words.push_back(address / 4);
  std::sort(words.begin(), words.end());
  words.erase(std::unique(words.begin(), words.end()), words.end());
  std::array<int, 32> passes{};
  for (const uint32_t word : words) ++passes[word % 32];
  return *std::max_element(passes.begin(), passes.end());
}

}  // namespace msvit::emulator
