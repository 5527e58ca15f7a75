_base_ = '../_base_/views-64_2000.py'
# Without a norm a higher rate diverges.
optim_wrapper = dict(optimizer=dict(lr=5e-3))
