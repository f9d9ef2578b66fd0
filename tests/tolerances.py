"""Every tolerance of the tests, as a rule with its reason."""

# Probabilities of torch and onnxruntime: both compute in float32, with convolutions summed in another order and the
# BatchNorms folded into the weights. A logit of size 10 then differs by some 10 * 2^-23 * sqrt(number of layers).
EXPORTED_PROBABILITY = {"rtol": 0.0, "atol": 2e-5}
