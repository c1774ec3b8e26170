# The paper's short fine-tuning of a trained dense model: 5 % of its iterations, its official schedule in short.
# - Its anonymous version trains the parameters that APT adds, all others are frozen.  It names no learning rate: here
#   it is the official one.
# - Its camera-ready version trains the entire model at a tenth of that rate: the *_entire.py configs.  It leaves open
#   how warm-up and fall of the rate are shortened, here to 5 % too; and the rate of the added parameters, which start
#   fresh, here that of the heads.
requires_load_from = True
added_parameters = ['backbone.patch_embed.conv_down', 'backbone.patch_embed.zero_mlp']  # names that begin so
