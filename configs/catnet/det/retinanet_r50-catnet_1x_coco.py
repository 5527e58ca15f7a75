_base_ = 'mmdet::retinanet/retinanet_r50_fpn_1x_coco.py'

# The authors' one-stage detector. They train it on aerial images, for 36 epochs.
norm_cfg = dict(type='SyncBN', requires_grad=True)
model = dict(
    data_preprocessor=dict(pad_size_divisor=128),
    neck=[
        dict(
            type='mmext.DenseFPN',
            in_channels=[256, 512, 1024, 2048],
            out_channels=256,
            num_outs=5,
            start_level=1,
            stack_times=5,
            norm_cfg=norm_cfg,
        ),
        dict(type='mmext.SCP', in_channels=256, num_outs=5),
    ],
)
