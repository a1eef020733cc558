// out = alpha * h W' with bf16 inputs and fp32 sums and results. PyTorch's own bf16 product rounds its result to bf16,
// which costs up to 1.6 % of a probability; this one keeps it.
//
// The head is taken a panel of 64 entries at a time: pairs of its columns are interleaved as AVX512-BF16 wants them,
// the panel stays in the cache, and all rows of h are multiplied by it. h: (C, D), W: (V, D), out: (C, V), D even.

#include <immintrin.h>
#include <cstdint>
#include <cstring>
#include <type_traits>
#include <vector>

namespace {

constexpr int kLanes = 16;          // fp32 numbers of a register
constexpr int kWide = 4;            // registers across: 64 entries of the vocabulary
constexpr int kPanel = kLanes * kWide;
constexpr int kTall = 6;            // rows of h at a time: 24 sums, 4 panel registers, 1 of h

// Transposes 16 x 16 words; a word is a pair of bf16 numbers.
inline void transpose(__m512i r[16]) {
  __m512i t[16];
  for (int i = 0; i < 8; ++i) {
    t[2 * i] = _mm512_unpacklo_epi32(r[2 * i], r[2 * i + 1]);
    t[2 * i + 1] = _mm512_unpackhi_epi32(r[2 * i], r[2 * i + 1]);
  }
  for (int i = 0; i < 4; ++i) {
    r[4 * i] = _mm512_unpacklo_epi64(t[4 * i], t[4 * i + 2]);
    r[4 * i + 1] = _mm512_unpackhi_epi64(t[4 * i], t[4 * i + 2]);
    r[4 * i + 2] = _mm512_unpacklo_epi64(t[4 * i + 1], t[4 * i + 3]);
    r[4 * i + 3] = _mm512_unpackhi_epi64(t[4 * i + 1], t[4 * i + 3]);
  }
  for (int i = 0; i < 4; ++i) {
    t[i] = _mm512_shuffle_i32x4(r[i], r[i + 4], 0x88);
    t[i + 4] = _mm512_shuffle_i32x4(r[i], r[i + 4], 0xdd);
    t[i + 8] = _mm512_shuffle_i32x4(r[i + 8], r[i + 12], 0x88);
    t[i + 12] = _mm512_shuffle_i32x4(r[i + 8], r[i + 12], 0xdd);
  }
  for (int i = 0; i < 4; ++i) {
    r[i] = _mm512_shuffle_i32x4(t[i], t[i + 8], 0x88);
    r[i + 4] = _mm512_shuffle_i32x4(t[i + 4], t[i + 12], 0x88);
    r[i + 8] = _mm512_shuffle_i32x4(t[i], t[i + 8], 0xdd);
    r[i + 12] = _mm512_shuffle_i32x4(t[i + 4], t[i + 12], 0xdd);
  }
}

// panel[k][lane]: the pair k of each of `columns` entries; entries and pairs beyond the end are 0.
void pack(const uint16_t* weight, int64_t stride, int columns, int pairs, uint32_t* panel) {
  for (int group = 0; group < kWide; ++group) {
    for (int first = 0; first < pairs; first += 16) {
      const int left = pairs - first;
      const __mmask16 mask = left >= 16 ? 0xffff : static_cast<__mmask16>((1u << left) - 1);
      __m512i words[16];
      for (int lane = 0; lane < 16; ++lane) {
        const int column = group * kLanes + lane;
        words[lane] = column < columns
            ? _mm512_maskz_loadu_epi32(mask, reinterpret_cast<const uint32_t*>(weight + column * stride) + first)
            : _mm512_setzero_si512();
      }
      transpose(words);
      for (int k = 0; k < 16 && k < left; ++k)
        _mm512_storeu_si512(panel + (first + k) * kPanel + group * kLanes, words[k]);
    }
  }
}

template <int Rows>
void multiply(const uint16_t* hidden, int64_t hidden_stride, const uint32_t* panel, int pairs, float alpha,
              float* out, int64_t out_stride, int columns) {
  __m512 sum[Rows][kWide];
  for (auto& row : sum)
    for (auto& s : row) s = _mm512_setzero_ps();
  for (int k = 0; k < pairs; ++k) {
    __m512bh weight[kWide];
    for (int j = 0; j < kWide; ++j)
      weight[j] = (__m512bh)_mm512_loadu_si512(panel + k * kPanel + j * kLanes);
    for (int i = 0; i < Rows; ++i) {
      uint32_t pair;
      std::memcpy(&pair, hidden + i * hidden_stride + 2 * k, sizeof pair);
      const __m512bh both = (__m512bh)_mm512_set1_epi32(static_cast<int>(pair));
      for (int j = 0; j < kWide; ++j) sum[i][j] = _mm512_dpbf16_ps(sum[i][j], both, weight[j]);
    }
  }
  const __m512 scale = _mm512_set1_ps(alpha);
  for (int i = 0; i < Rows; ++i)
    for (int j = 0; j < kWide; ++j) {
      const int left = columns - j * kLanes;
      if (left <= 0) break;
      const __mmask16 mask = left >= kLanes ? 0xffff : static_cast<__mmask16>((1u << left) - 1);
      _mm512_mask_storeu_ps(out + i * out_stride + j * kLanes, mask, _mm512_mul_ps(sum[i][j], scale));
    }
}

}  // namespace

extern "C" void bf16_product(const uint16_t* hidden, int64_t hidden_stride, int64_t rows, const uint16_t* weight,
                             int64_t weight_stride, int64_t vocabulary, int64_t width, float alpha, float* out,
                             int64_t out_stride) {
  const int pairs = static_cast<int>(width / 2);
  const int64_t panels = (vocabulary + kPanel - 1) / kPanel;
#pragma omp parallel
  {
    std::vector<uint32_t> panel(static_cast<size_t>(pairs) * kPanel);
#pragma omp for schedule(static)
    for (int64_t p = 0; p < panels; ++p) {
      const int64_t start = p * kPanel;
      const int columns = static_cast<int>(vocabulary - start < kPanel ? vocabulary - start : kPanel);
      pack(weight + start * weight_stride, weight_stride, columns, pairs, panel.data());
      int64_t row = 0;
      const auto take = [&](auto tall) {
        for (; row + tall.value <= rows; row += tall.value)
          multiply<tall.value>(hidden + row * hidden_stride, hidden_stride, panel.data(), pairs, alpha,
                               out + row * out_stride + start, out_stride, columns);
      };
      take(std::integral_constant<int, kTall>{});
      take(std::integral_constant<int, 4>{});
      take(std::integral_constant<int, 1>{});
    }
  }
}
