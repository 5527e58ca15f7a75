_base_ = ['../_base_/networks/pe_28x10.py', '../_base_/astronaut-512_50k.py']
optim_wrapper = dict(optimizer=dict(lr=2e-4))
