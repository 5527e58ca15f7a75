# The ranks start at 16 and follow the hook, up to three quarters of the channels.
_base_ = 'resnet50-tucker_8xb32_in1k.py'

model = dict(
    backbone=dict(
        rules=[dict(kernel_size=3, to=dict(type='mmext.TuckerConv2d', ratio=0.75, start_rank=(16, 16)))],
    )
)
custom_hooks = [dict(type='mmext.TuckerRankHook', tolerance=0.1, interval=10)]
