_base_ = 'resnet.py'

custom_hooks = [dict(type='mmext.OrthogonalConvHook', method='ocnn', match='layer', weight=0.01)]
