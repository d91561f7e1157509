// Gradients of the patch embedding (docs/operators.md), one pass each over dout:
//
//   dtable_c = sum over images b of dout[row of candidate c in b]     in double, in the order of the images
//   dbias    = sum over patch rows t of dout_t                        in double, in the order of the rows
//   dweight  = sum over patch rows t of dout_t patch_t^T              in fp32, chunks of kChunk rows added in order
//   dpatch_t = weight^T dout_t                                        in fp32, stored to the pixels of the patch
//
// A task computes one row of dtable, kColumns columns of dbias, the part of one chunk in a panel of dweight's columns
// and about a quarter of its rows, or the pixels of about kPatches patches. No two patches share a pixel, and every sum
// belongs to one task. So there are no atomics, and no result depends on the number of threads.
#include <algorithm>

#include "mixed_scale_embed.h"
#include "parallel.h"
#include "patches.h"
#include "simd/gemm.h"

namespace msvit {
namespace MSVIT_ISA {
namespace {

constexpr int64_t kPanelWidth = TallTile::kCols;
constexpr int64_t kChunk = 128;   // packed rows whose patches are read together for dweight
constexpr int64_t kColumns = 64;  // columns of dbias per task
constexpr int64_t kPatches = 64;  // about as many patches per task of dimages

// ---- table and bias

// The packed row of a candidate in an image, or -1 if it is not active or the layout points outside the rows.
int64_t row_of(const MixedScaleEmbedBwdArgs& a, const PatchGrid& grid, int64_t image, int64_t candidate) {
  int64_t row = -1;
  if (candidate < grid.num_prefix) {
    row = int64_t{a.cu_seqlens[image]} + candidate;
  } else {
    const int64_t index = candidate - grid.num_prefix, cell = index - grid.num_coarse;
    const bool coarse = cell < 0;
    const CellPlace place = coarse ? CellPlace{index, 0} : grid.regions.place_of(cell);
    const int64_t region = image * grid.num_coarse + place.region;
    if ((a.fine_mask[region] != 0) == coarse) return -1;
    row = int64_t{a.region_start[region]} + place.local;
  }
  return row >= 0 && row < a.total_tokens ? row : -1;
}

template <class T>
void add_row(double* sum, const T* row, int64_t n) {
  for (int64_t i = 0; i < n; ++i) sum[i] += to_float(row[i]);
}

template <class T>
void write_sum(T* dst, const double* sum, int64_t n) {
  for (int64_t i = 0; i < n; ++i) convert(dst + i, static_cast<float>(sum[i]));
}

template <class T>
void table_gradient(const MixedScaleEmbedBwdArgs& a) {
  const PatchGrid grid(a);
  const T* dout = static_cast<const T*>(a.dout);
  const Scratch<double> scratch(a.num_threads, a.dim);
#pragma omp parallel for num_threads(a.num_threads) schedule(static)
  for (int64_t candidate = 0; candidate < grid.num_candidates; ++candidate) {
    double* sum = scratch.of_thread();
    std::memset(sum, 0, a.dim * sizeof(double));
    for (int64_t image = 0; image < grid.batch; ++image) {
      const int64_t row = row_of(a, grid, image, candidate);
      if (row >= 0) add_row(sum, dout + row * a.dim, a.dim);
    }
    write_sum(static_cast<T*>(a.dtable) + candidate * a.dim, sum, a.dim);
  }
}

template <class T>
void bias_gradient(const MixedScaleEmbedBwdArgs& a) {
  const PatchGrid grid(a);
  const T* dout = static_cast<const T*>(a.dout);
#pragma omp parallel for num_threads(a.num_threads) schedule(static)
  for (int64_t column = 0; column < a.dim; column += kColumns) {
    const int64_t count = std::min(kColumns, a.dim - column);
    double sum[kColumns] = {};
    for (int64_t row = 0; row < a.total_tokens; ++row)
      if (grid.origin(a.batch_index[row], a.token_index[row]).image >= 0)
        add_row(sum, dout + row * a.dim + column, count);
    write_sum(static_cast<T*>(a.dbias) + column, sum, count);
  }
}

// ---- weight

template <class T, class Reader>
class WeightGradient {
 public:
  WeightGradient(const MixedScaleEmbedBwdArgs& args, const Reader& reader)
      : a_(args),
        reader_(reader),
        depth_(3 * reader.pixels()),
        panels_(ceil_div(depth_, kPanelWidth)),
        row_tiles_(ceil_div(args.dim, TallTile::kRows)),
        patches_(1, panels_ * kChunk * kPanelWidth),
        dout_(1, row_tiles_ * kChunk * TallTile::kRows),
        sum_(1, row_tiles_ * TallTile::kRows * panels_ * kPanelWidth),
        lines_(args.num_threads, panels_ * kPanelWidth + reader.line_floats()) {}

  void run() const {
    const int64_t parts = std::min<int64_t>(row_tiles_, 4);
    std::memset(sum_.shared(), 0, row_tiles_ * TallTile::kRows * stride() * sizeof(float));
#pragma omp parallel num_threads(a_.num_threads)
    {
      for (int64_t row = 0; row < a_.total_tokens; row += kChunk) {
        const int64_t rows = std::min(kChunk, a_.total_tokens - row);
#pragma omp for schedule(static)
        for (int64_t i = 0; i < rows; ++i) read_patch(row + i, i);
#pragma omp for schedule(static)
        for (int64_t item = 0; item < panels_ * parts; ++item) multiply(item / parts, item % parts, parts, rows);
      }
#pragma omp for schedule(static)
      for (int64_t n = 0; n < a_.dim; ++n) {
        T* dst = static_cast<T*>(a_.dweight) + n * depth_;
        for (int64_t k = 0; k < depth_; ++k) convert(dst + k, sum_.shared()[n * stride() + k]);
      }
    }
  }

 private:
  int64_t stride() const { return panels_ * kPanelWidth; }

  // Row i of the chunk: its patch into the panels [panel][row][kPanelWidth], dout_t into tiles
  // [tile][row][TallTile::kRows].
  void read_patch(int64_t row, int64_t i) const {
    const PatchOrigin from = reader_.origin(row);
    float* patch = lines_.of_thread();
    for (int64_t channel = 0; channel < 3; ++channel)
      reader_.channel(from, channel, patch + channel * reader_.pixels(), patch + stride());
    for (int64_t k = depth_; k < stride(); ++k) patch[k] = 0.0f;
    for (int64_t p = 0; p < panels_; ++p)
      std::memcpy(patches_.shared() + (p * kChunk + i) * kPanelWidth, patch + p * kPanelWidth,
                  kPanelWidth * sizeof(float));
    const T* dout = static_cast<const T*>(a_.dout) + row * a_.dim;
    const bool is_patch = from.image >= 0;
    for (int64_t n = 0; n < row_tiles_ * TallTile::kRows; ++n)
      dout_.shared()[(n / TallTile::kRows * kChunk + i) * TallTile::kRows + n % TallTile::kRows] =
          is_patch && n < a_.dim ? to_float(dout[n]) : 0.0f;
  }

  void multiply(int64_t panel, int64_t part, int64_t parts, int64_t rows) const {
    const float* patches = patches_.shared() + panel * kChunk * kPanelWidth;
    for (int64_t tile = row_tiles_ * part / parts; tile < row_tiles_ * (part + 1) / parts; ++tile) {
      const float* dout = dout_.shared() + tile * kChunk * TallTile::kRows;
      float* sum = sum_.shared() + tile * TallTile::kRows * stride() + panel * kPanelWidth;
      gemm_tile<F32, Transposed, TallTile::kRows, TallTile::kVecs>(dout, TallTile::kRows, patches, kPanelWidth, rows,
                                                                   sum, stride(), true);
    }
  }

  const MixedScaleEmbedBwdArgs& a_;
  const Reader& reader_;
  const int64_t depth_, panels_, row_tiles_;
  const Scratch<float> patches_, dout_, sum_, lines_;
};

// ---- images

template <class T, class Pixel>
class ImageGradient {
 public:
  explicit ImageGradient(const MixedScaleEmbedBwdArgs& args)
      : a_(args),
        grid_(args),
        pixels_(grid_.patch_size * grid_.patch_size),
        depth_(3 * pixels_),
        panels_(ceil_div(depth_, kPanelWidth)),
        cells_(grid_.regions.cells_per_region()),
        regions_(std::max<int64_t>(1, kPatches / cells_)),
        weight_(1, panels_ * args.dim * kPanelWidth),
        dout_(args.num_threads, regions_ * cells_ * args.dim),
        product_(args.num_threads, regions_ * cells_ * panels_ * kPanelWidth) {}

  void run() const {
    const int64_t total_regions = grid_.batch * grid_.num_coarse;
#pragma omp parallel num_threads(a_.num_threads)
    {
#pragma omp for schedule(static)
      for (int64_t n = 0; n < a_.dim; ++n) pack_weight(n);
#pragma omp for schedule(dynamic, 1)
      for (int64_t item = 0; item < ceil_div(total_regions, regions_); ++item)
        regions(item * regions_, std::min(total_regions, (item + 1) * regions_));
    }
  }

 private:
  // Row n of the weight into the panels [panel][n][kPanelWidth].
  void pack_weight(int64_t n) const {
    const T* weight = static_cast<const T*>(a_.weight) + n * depth_;
    for (int64_t p = 0; p < panels_; ++p) {
      const int64_t k = p * kPanelWidth;
      copy_floats(weight_.shared() + (p * a_.dim + n) * kPanelWidth, weight + k,
                  std::min<int64_t>(kPanelWidth, depth_ - k), kPanelWidth);
    }
  }

  void regions(int64_t begin, int64_t end) const {
    float* dout = dout_.of_thread();
    float* product = product_.of_thread();
    int64_t patches = 0;
    for (int64_t region = begin; region < end; ++region)
      for (int64_t local = 0; local < patches_of(region); ++local, ++patches)
        read_row(int64_t{a_.region_start[region]} + local, dout + patches * a_.dim);
    for (int64_t p = 0; p < panels_; ++p)
      gemm_panel<F32, RowMajor, TallTile>(patches, TallTile::kVecs, a_.dim, dout, a_.dim,
                                          weight_.shared() + p * a_.dim * kPanelWidth, kPanelWidth,
                                          product + p * kPanelWidth, panels_ * kPanelWidth, false, Nothing{});
    for (int64_t region = begin; region < end; ++region)
      for (int64_t local = 0; local < patches_of(region); ++local, product += panels_ * kPanelWidth)
        write_patch(region, local, product);
  }

  int64_t patches_of(int64_t region) const { return grid_.regions.num_rows(a_.fine_mask[region] != 0); }

  void read_row(int64_t row, float* dst) const {
    if (row < 0 || row >= a_.total_tokens)
      std::memset(dst, 0, a_.dim * sizeof(float));
    else
      copy_floats(dst, static_cast<const T*>(a_.dout) + row * a_.dim, a_.dim, a_.dim);
  }

  // Each of the s * s pixels that a coarse patch averages gets the same share.
  void write_patch(int64_t region, int64_t local, const float* dpatch) const {
    const int64_t p = grid_.patch_size, s = grid_.scale_factor, index = region % grid_.num_coarse;
    const bool coarse = a_.fine_mask[region] == 0;
    const int64_t repeat = coarse ? s : 1;
    const int64_t y = index / grid_.regions.columns * grid_.side() + local / s * p,
                  x = index % grid_.regions.columns * grid_.side() + local % s * p;
    Pixel* image = static_cast<Pixel*>(a_.dimages) + region / grid_.num_coarse * 3 * grid_.height * grid_.width;
    for (int64_t channel = 0; channel < 3; ++channel) {
      const float factor = static_cast<float>(1.0 / (a_.std[channel] * static_cast<double>(repeat * repeat)));
      for (int64_t i = 0; i < p * repeat; ++i) {
        const float* src = dpatch + channel * pixels_ + i / repeat * p;
        Pixel* dst = image + (channel * grid_.height + y + i) * grid_.width + x;
        for (int64_t j = 0; j < p; ++j)
          for (int64_t copy = 0; copy < repeat; ++copy) convert(dst + j * repeat + copy, src[j] * factor);
      }
    }
  }

  const MixedScaleEmbedBwdArgs& a_;
  const PatchGrid grid_;
  const int64_t pixels_, depth_, panels_, cells_, regions_;
  const Scratch<float> weight_, dout_, product_;
};

template <class T>
void image_gradient(const MixedScaleEmbedBwdArgs& a) {
  switch (static_cast<PixelType>(a.pixel_type)) {
    case PixelType::float32: return ImageGradient<T, float>(a).run();
    case PixelType::bfloat16: return ImageGradient<T, Bf16>(a).run();
    case PixelType::float16: return ImageGradient<T, Half>(a).run();
    case PixelType::uint8: return;  // integers have no gradient
  }
}

template <class T>
void run_backward(const MixedScaleEmbedBwdArgs& a) {
  if (a.dtable != nullptr) table_gradient<T>(a);
  if (a.dbias != nullptr) bias_gradient<T>(a);
  if (a.dimages != nullptr) image_gradient<T>(a);
  if (a.dweight != nullptr)
    with_patch_reader(a, [&](const auto& reader) {
      using Reader = std::decay_t<decltype(reader)>;
      WeightGradient<T, Reader>(a, reader).run();
    });
}

}  // namespace

void mixed_scale_embed_bwd(const MixedScaleEmbedBwdArgs& args) {
  return args.is_bf16 ? run_backward<Bf16>(args) : run_backward<float>(args);
}

}  // namespace MSVIT_ISA
}  // namespace msvit
