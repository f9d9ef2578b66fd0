#include "core/upsampled_labels/cell_grid.h"

namespace smile_fast {

std::vector<double> corner_weights(const CellGrid& grid) {
  const int stride = grid.stride;
  std::vector<double> weights(static_cast<std::size_t>(4 * grid.patch()));
  const auto of_axis = [stride](int pixel, int second) {
    const int weight = 2 * pixel + (stride % 2 == 0);
    return second ? weight : 2 * stride - weight;
  };
  for (int corner = 0; corner < 4; ++corner)
    for (int y = 0; y < stride; ++y)
      for (int x = 0; x < stride; ++x)
        weights[corner * grid.patch() + y * stride + x] = of_axis(y, corner / 2) * of_axis(x, corner % 2);
  return weights;
}

}  // namespace smile_fast
