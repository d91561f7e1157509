// Reads the patches of packed tokens from the images, one channel at a time.
//
//   fine:    x = (pixel * range - mean) / std                                    range = 1/255 for uint8, else 1
//   coarse:  the same of the average over scale_factor x scale_factor pixels     (eq. 5 of MSViT, arXiv 2307.02321)
//
// Averaging and normalising commute, so raw pixels are averaged and each result is normalised once, in fp32. A coarse
// patch is read in one pass over its image lines, which are added in order.
#pragma once

#include "mixed_scale_embed.h"
#include "regions.h"
#include "simd/transpose.h"

namespace msvit {
namespace MSVIT_ISA {

// (sum / n - mean) / std for floats, (sum / (255 n) - mean) / std for uint8: `sum` adds the n pixels of an average. A
// rounded constant would shift all pixels of a channel by the same amount, and these shifts would add up in the product
// with the weight. So each constant is a float and the remainder that this float leaves.
template <class Pixel>
struct Normalise {
  float scale, mean, mean_low, inverse_std;
  Normalise(double mean_, double std_, int64_t n)
      : scale(static_cast<float>(1.0 / static_cast<double>(n))),
        mean(static_cast<float>(mean_)),
        mean_low(static_cast<float>(mean_ - mean)),
        inverse_std(static_cast<float>(1.0 / std_)) {}
  MSVIT_INLINE float operator()(float sum) const { return (sum * scale - mean - mean_low) * inverse_std; }
};

template <>
struct Normalise<uint8_t> {
  float scale, scale_low, shift, shift_low;
  Normalise(double mean, double std, int64_t n) {
    const double exact_scale = 1.0 / (255.0 * std * static_cast<double>(n)), exact_shift = -mean / std;
    scale = static_cast<float>(exact_scale);
    scale_low = static_cast<float>(exact_scale - scale);
    shift = static_cast<float>(exact_shift);
    shift_low = static_cast<float>(exact_shift - shift);
  }
  MSVIT_INLINE float operator()(float sum) const { return (sum * scale + shift) + (sum * scale_low + shift_low); }
};

// The pixel at the upper left of a packed row's patch. A row that is no patch has image -1.
struct PatchOrigin {
  int64_t image, y, x;
  bool coarse;
};

struct PatchGrid {
  int64_t batch, height, width, patch_size, scale_factor, num_prefix;
  RegionGrid regions;
  int64_t num_coarse, num_candidates;

  explicit PatchGrid(const PatchSource& s)
      : batch(s.batch),
        height(s.height),
        width(s.width),
        patch_size(s.patch_size),
        scale_factor(s.scale_factor),
        num_prefix(s.num_prefix),
        regions{height / side(), width / side(), scale_factor},
        num_coarse(regions.num_regions()),
        num_candidates(num_prefix + num_coarse + regions.num_cells()) {}

  // Pixels along one side of a region.
  int64_t side() const { return patch_size * scale_factor; }

  PatchOrigin origin(int64_t image, int64_t candidate) const {
    if (image < 0 || image >= batch || candidate < num_prefix || candidate >= num_candidates) return {-1, 0, 0, false};
    const int64_t index = candidate - num_prefix, cell = index - num_coarse, columns = regions.cell_columns();
    if (cell < 0) return {image, index / regions.columns * side(), index % regions.columns * side(), true};
    return {image, cell / columns * patch_size, cell % columns * patch_size, false};
  }
};

template <class Pixel>
class PatchReader {
 public:
  explicit PatchReader(const PatchSource& s) : grid(s), source_(s), images_(static_cast<const Pixel*>(s.images)) {}

  const PatchGrid grid;

  int64_t pixels() const { return grid.patch_size * grid.patch_size; }
  // Size of the working memory `line` of channel(), in floats.
  int64_t line_floats() const { return grid.patch_size * grid.scale_factor; }

  PatchOrigin origin(int64_t row) const { return grid.origin(source_.batch_index[row], source_.token_index[row]); }

  // Writes one channel of a patch, p * p floats, or zeros for a row that is no patch.
  void channel(const PatchOrigin& from, int64_t channel, float* dst, float* line) const {
    const int64_t p = grid.patch_size, s = grid.scale_factor;
    if (from.image < 0) {
      std::memset(dst, 0, p * p * sizeof(float));
      return;
    }
    const Pixel* src = images_ + ((from.image * 3 + channel) * grid.height + from.y) * grid.width + from.x;
    const double mean = source_.mean[channel], std = source_.std[channel];
    if (from.coarse && s > 1) {
      const Normalise<Pixel> normalise(mean, std, s * s);
      for (int64_t i = 0; i < p; ++i) averaged_line(src + i * s * grid.width, normalise, dst + i * p, line);
    } else {
      const Normalise<Pixel> normalise(mean, std, 1);
      for (int64_t i = 0; i < p; ++i)
        for (int64_t j = 0; j < p; ++j) dst[i * p + j] = normalise(to_float(src[i * grid.width + j]));
    }
  }

 private:
  // One line of p averages over s x s pixels: adds s image lines, then s neighbours.
  void averaged_line(const Pixel* src, const Normalise<Pixel>& normalise, float* dst, float* line) const {
    const int64_t p = grid.patch_size, s = grid.scale_factor;
    for (int64_t j = 0; j < s * p; ++j) line[j] = to_float(src[j]);
    for (int64_t i = 1; i < s; ++i)
      for (int64_t j = 0; j < s * p; ++j) line[j] += to_float(src[i * grid.width + j]);
    if (s == 2) {  // the common case, as vector code
      for (int64_t j = 0; j < p; ++j) dst[j] = normalise(line[2 * j] + line[2 * j + 1]);
      return;
    }
    for (int64_t j = 0; j < p; ++j) {
      float sum = line[j * s];
      for (int64_t i = 1; i < s; ++i) sum += line[j * s + i];
      dst[j] = normalise(sum);
    }
  }

  const PatchSource source_;
  const Pixel* images_;
};

// Calls f with a PatchReader of the images' pixel type.
template <class Function>
void with_patch_reader(const PatchSource& source, const Function& f) {
  switch (static_cast<PixelType>(source.pixel_type)) {
    case PixelType::float32: return f(PatchReader<float>(source));
    case PixelType::bfloat16: return f(PatchReader<Bf16>(source));
    case PixelType::float16: return f(PatchReader<Half>(source));
    case PixelType::uint8: return f(PatchReader<uint8_t>(source));
  }
}

// Makes the rows of kBlock tokens columns of a panel: panel[k * width + i] = rows[i * stride + k] for k < depth. Depth
// is rounded up to a multiple of kBlock; both sides need room for that.
inline void transpose_to_panel(const float* rows, int64_t stride, int64_t depth, float* panel, int64_t width) {
  for (int64_t k = 0; k < depth; k += kBlock)
    transpose_block([&](int i) { return load_block(rows + i * stride + k); }, panel + k * width, width);
}

}  // namespace MSVIT_ISA
}  // namespace msvit
