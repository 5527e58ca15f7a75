_base_ = './relu_28x10.py'
model = dict(network=dict(act_cfg=dict(type='mmext.SineActivation', bias_init='weight')))
