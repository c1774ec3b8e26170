# The paper's short fine-tuning of a trained dense model: 5 % of its iterations, its official schedule in short.
# - Its anonymous version trains the parameters that APT adds, all others are frozen.  It names no learning rate: here
#   it is the official one.
# - Its camera-ready version trains the entire model at a tenth of that rate: the *_entire.py configs.  It leaves open
#   how warm-up and fall of the rate are shortened, here to 5 % too; and the rate of the added parameters, which start
#   fresh, here that of the heads.
# Why the first is the default: in small experiments (docs/results.md, points 3 and 8) these patches need little
# training, it cannot make the dense model worse, and it takes the least memory.  A detector that keeps half of its
# tokens, and whose dense model still improves, gains more by the second.
requires_load_from = True
added_parameters = ['backbone.patch_embed.conv_down', 'backbone.patch_embed.zero_mlp']  # names that begin so
