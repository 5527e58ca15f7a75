_base_ = ['../_base_/networks/siren_28x10.py', '../_base_/camera-64_1k.py']
model = dict(network=dict(out_features=1))
optim_wrapper = dict(optimizer=dict(lr=2e-4))
