_base_ = 'mmpretrain::resnet/resnet50_8xb32_in1k.py'

model = dict(
    backbone=dict(
        type='mmext.swap_layers',
        model='ResNet',
        rules=[dict(layer='ReLU', to=dict(type='mmext.LENI'))],
    )
)
# The two scales per channel start as a ReLU's and are not decayed, nor is any other vector.
optim_wrapper = dict(paramwise_cfg=dict(flat_decay_mult=0.0))
