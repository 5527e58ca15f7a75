_base_ = 'mmpretrain::resnet/resnet18_8xb16_cifar10.py'

# Every k x k kernel is made of eight bits. The constructor keeps weight decay away from them.
model = dict(backbone=dict(conv_cfg=dict(type='mmext.BitwiseConv2d', bits=8)))
optim_wrapper = dict(constructor='mmext.LayerOptionsConstructor')
