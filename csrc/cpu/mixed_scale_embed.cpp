// Forward of the patch embedding.
//
//   row_t = table[token_index_t] + [t is a patch] * (weight . patch_t + bias)
//
// One task computes a range of columns for a block of kTokens packed rows. For each channel it reads the patches of the
// block into a panel [pixel][row] that fits the second-level cache, then multiplies register tiles of weight rows with
// the panel: lanes run along packed rows, and the weight is read in place. The product [column][row] is transposed when
// bias and table row are added. Images and weight are read once per task; the product stays in cache.
//
// Accumulation is fp32. Each kWords words along k give one partial sum, and partial sums are added in order, so bits do
// not depend on the tasks or on the number of threads.
#include "mixed_scale_embed.h"

#include <algorithm>

#include "parallel.h"
#include "patches.h"
#include "simd/gemm.h"

namespace msvit {
namespace MSVIT_ISA {
namespace {

constexpr int64_t kTokens = 48;
constexpr int64_t kWords = 128;  // operand words of one partial sum
static_assert(kTokens % TallTile::kCols == 0 && kTokens % kBlock == 0, "a block is whole panels and whole transposes");

// The rows of a weight tile as operand words. If the weight has to be converted first, the words are in the task's
// scratch memory.
template <class Word>
struct WeightRows {
  const Word* data;
  int64_t stride;
};

template <class Op, class T>
struct WeightTile;

template <>
struct WeightTile<F32, float> {
  static constexpr int64_t kScratch = 0;
  static WeightRows<float> rows(const float* weight, int64_t stride, int64_t, int64_t, float*) {
    return {weight, stride};
  }
};

template <>
struct WeightTile<F32, Bf16> {
  static constexpr int64_t kScratch = TallTile::kRows * kWords;
  static WeightRows<float> rows(const Bf16* weight, int64_t stride, int64_t count, int64_t depth, float* scratch) {
    for (int64_t r = 0; r < count; ++r) copy_floats(scratch + r * kWords, weight + r * stride, depth, depth);
    return {scratch, kWords};
  }
};

// Converts a panel of floats to operand words, in place.
inline void panel_words(F32, float*, int64_t) {}

#ifdef __AVX512BF16__
template <>
struct WeightTile<Bf16Pairs, Bf16> {
  static constexpr int64_t kScratch = 0;
  static WeightRows<uint32_t> rows(const Bf16* weight, int64_t stride, int64_t, int64_t, float*) {
    return {reinterpret_cast<const uint32_t*>(weight), stride / 2};
  }
};

// Two lines of floats become one line of pairs.
inline void panel_words(Bf16Pairs, float* panel, int64_t depth) {
  for (int64_t k = 0; k < depth; k += 2)
    for (int64_t lane = 0; lane < kTokens; lane += kLanes) {
      const VecU low = to_bf16_bits(load(panel + k * kTokens + lane));
      const VecU high = to_bf16_bits(load(panel + (k + 1) * kTokens + lane));
      store_bits(panel + k / 2 * kTokens + lane, low | high << 16);
    }
}
#endif

// Parts that the columns of a block are divided into, so that few blocks occupy all threads. Each part reads the
// patches of the block again, which costs about as much as multiplying kReadColumns columns. More parts are taken only
// if this estimate promises to save a tenth of the time.
int64_t column_parts(int64_t blocks, int64_t dim, int num_threads) {
  constexpr int64_t kReadColumns = 40, kMinColumns = 64;
  int64_t best = 1, best_time = 0;
  for (int64_t parts = 1; parts == 1 || parts <= dim / kMinColumns; ++parts) {
    const int64_t rounds = ceil_div(blocks * parts, num_threads);
    const int64_t time = rounds * (ceil_div(dim, parts) + kReadColumns);
    if (best_time == 0 || 10 * time < 9 * best_time) best_time = time, best = parts;
  }
  return best;
}

struct Sizes {
  int64_t tokens, columns;  // of one task
  int64_t row_stride;       // of patch rows before they are transposed
  int64_t depth_padded;
  Sizes(int64_t tokens_, int64_t columns_, int64_t pixels)
      : tokens(tokens_),
        columns(columns_),
        row_stride(round_up(pixels, kBlock) + kLanes),
        depth_padded(round_up(pixels, kBlock)) {}
};

// Scratch of one thread, in floats.
struct Buffers {
  float *panel, *product, *rows, *line, *weight;

  template <class Weight>
  static int64_t floats(const Sizes& sizes, int64_t line_floats) {
    return sizes.depth_padded * kTokens + round_up(sizes.columns, kBlock) * kTokens +
           kBlock * std::max(sizes.row_stride, round_up(sizes.columns, kBlock)) + round_up(line_floats, kLanes) +
           Weight::kScratch;
  }
  Buffers(float* base, const Sizes& sizes, int64_t line_floats) {
    panel = base;
    product = panel + sizes.depth_padded * kTokens;
    rows = product + round_up(sizes.columns, kBlock) * kTokens;
    line = rows + kBlock * std::max(sizes.row_stride, round_up(sizes.columns, kBlock));
    weight = line + round_up(line_floats, kLanes);
  }
};

template <class Op, class T, class Reader>
class Forward {
 public:
  Forward(const MixedScaleEmbedFwdArgs& args, const Reader& reader) : a_(args), reader_(reader) {}

  void run() const {
    const int64_t blocks = ceil_div(a_.total_tokens, kTokens);
    const int64_t parts = column_parts(blocks, a_.dim, a_.num_threads);
    const int64_t part_columns = round_up(ceil_div(a_.dim, parts), TallTile::kRows);
    const Sizes largest(kTokens, part_columns, reader_.pixels());
    const Scratch<float> scratch(a_.num_threads, Buffers::floats<Weight>(largest, reader_.line_floats()));
#pragma omp parallel for num_threads(a_.num_threads) schedule(dynamic, 1)
    for (int64_t item = 0; item < blocks * parts; ++item) {
      const int64_t token = item / parts * kTokens, column = item % parts * part_columns;
      if (column >= a_.dim) continue;
      const Sizes sizes(std::min(kTokens, a_.total_tokens - token), std::min(part_columns, a_.dim - column),
                        reader_.pixels());
      block(token, column, sizes, Buffers(scratch.of_thread(), largest, reader_.line_floats()));
    }
  }

 private:
  using Weight = WeightTile<Op, T>;
  using Word = typename Op::Word;

  void block(int64_t token, int64_t column, const Sizes& sizes, const Buffers& buffers) const {
    PatchOrigin origins[kTokens];
    for (int64_t i = 0; i < kTokens; ++i)
      origins[i] = i < sizes.tokens ? reader_.origin(token + i) : PatchOrigin{-1, 0, 0, false};
    std::memset(buffers.product, 0, round_up(sizes.columns, kBlock) * kTokens * sizeof(float));
    for (int64_t channel = 0; channel < 3; ++channel) {
      read_channel(origins, channel, sizes, buffers);
      multiply_channel(column, channel, sizes, buffers);
    }
    for (int64_t i = 0; i < sizes.tokens; i += kBlock)
      write_rows(token + i, column, origins + i, std::min<int64_t>(kBlock, sizes.tokens - i), sizes.columns,
                 buffers.product + i, buffers.rows);
  }

  void read_channel(const PatchOrigin* origins, int64_t channel, const Sizes& sizes, const Buffers& buffers) const {
    for (int64_t group = 0; group < round_up(sizes.tokens, kLanes); group += kBlock) {
      for (int64_t i = 0; i < kBlock; ++i)
        reader_.channel(origins[group + i], channel, buffers.rows + i * sizes.row_stride, buffers.line);
      transpose_to_panel(buffers.rows, sizes.row_stride, reader_.pixels(), buffers.panel + group, kTokens);
    }
    panel_words(Op{}, buffers.panel, reader_.pixels());
  }

  void multiply_channel(int64_t column, int64_t channel, const Sizes& sizes, const Buffers& buffers) const {
    const int64_t pixels = reader_.pixels(), vecs = round_up(sizes.tokens, kLanes) / kLanes;
    const T* weight = static_cast<const T*>(a_.weight) + column * 3 * pixels + channel * pixels;
    const Word* panel = reinterpret_cast<const Word*>(buffers.panel);
    constexpr int64_t step = kWords * Op::kPerWord;
    for (int64_t k = 0; k < pixels; k += step) {
      const int64_t depth = std::min(step, pixels - k), words = depth / Op::kPerWord;
      for (int64_t n = 0; n < sizes.columns; n += TallTile::kRows) {
        const int64_t count = std::min<int64_t>(TallTile::kRows, sizes.columns - n);
        const WeightRows<Word> rows =
            Weight::rows(weight + n * 3 * pixels + k, 3 * pixels, count, depth, buffers.weight);
        for (int64_t v = 0; v < vecs; v += TallTile::kVecs)
          tile_function<Op, RowMajor, TallTile>(count, std::min<int64_t>(TallTile::kVecs, vecs - v))(
              rows.data, rows.stride, panel + k / Op::kPerWord * kTokens + v * kLanes, kTokens, words,
              buffers.product + n * kTokens + v * kLanes, kTokens, true);
      }
    }
  }

  void write_rows(int64_t token, int64_t column, const PatchOrigin* origins, int64_t count, int64_t columns,
                  const float* product, float* rows) const {
    const int64_t stride = round_up(columns, kBlock);
    for (int64_t n = 0; n < columns; n += kBlock) {
      transpose_block([&](int i) { return load_block(product + (n + i) * kTokens); }, rows + n, stride);
    }
    const T* bias = static_cast<const T*>(a_.bias);
    for (int64_t i = 0; i < count; ++i) {
      const int64_t candidate = a_.token_index[token + i];
      const int64_t entry = std::clamp<int64_t>(candidate, 0, reader_.grid.num_candidates - 1);
      const T* table = static_cast<const T*>(a_.table) + entry * a_.dim + column;
      T* out = static_cast<T*>(a_.out) + (token + i) * a_.dim + column;
      const float* row = rows + i * stride;
      if (origins[i].image < 0)
        std::memcpy(out, table, columns * sizeof(T));
      else if (bias == nullptr)
        for (int64_t n = 0; n < columns; ++n) convert(out + n, row[n] + to_float(table[n]));
      else
        for (int64_t n = 0; n < columns; ++n)
          convert(out + n, row[n] + to_float(bias[column + n]) + to_float(table[n]));
    }
  }

  const MixedScaleEmbedFwdArgs& a_;
  const Reader& reader_;
};

template <class Op, class T, class Reader>
void run_forward(const MixedScaleEmbedFwdArgs& args, const Reader& reader) {
  Forward<Op, T, Reader>(args, reader).run();
}

}  // namespace

void mixed_scale_embed_fwd(const MixedScaleEmbedFwdArgs& args) {
  with_patch_reader(args, [&](const auto& reader) {
    if (!args.is_bf16) return run_forward<F32, float>(args, reader);
#ifdef __AVX512BF16__
    // A pair of weights is read as one word: patches need an even size, and the weight an even offset.
    if (args.patch_size % 2 == 0 && reinterpret_cast<uintptr_t>(args.weight) % 4 == 0)
      return run_forward<Bf16Pairs, Bf16>(args, reader);
#endif
    run_forward<F32, Bf16>(args, reader);
  });
}

}  // namespace MSVIT_ISA
}  // namespace msvit
