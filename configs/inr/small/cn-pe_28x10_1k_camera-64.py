_base_ = ['../_base_/networks/cn-pe_28x10.py', '../_base_/camera-64_1k.py']
# As many octaves as 64 samples carry.
model = dict(network=dict(out_features=1, encoding=dict(num_octaves=4)))
