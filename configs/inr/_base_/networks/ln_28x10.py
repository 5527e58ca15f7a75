_base_ = './relu_28x10.py'
model = dict(network=dict(norm_cfg=dict(type='LN')))
