_base_ = ['../_base_/networks/ln_28x10.py', '../_base_/camera-64_1k.py']
model = dict(network=dict(out_features=1))
