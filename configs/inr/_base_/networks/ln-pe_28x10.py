_base_ = './pe_28x10.py'
model = dict(network=dict(norm_cfg=dict(type='LN')))
