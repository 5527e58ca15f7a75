_base_ = 'mmdet::retinanet/retinanet_r50_fpn_1x_coco.py'

norm_cfg = dict(type='BN', requires_grad=True)
model = dict(
    neck=dict(
        _delete_=True,
        type='mmext.RCFPN',
        in_channels=[256, 512, 1024, 2048],
        out_channels=256,
        num_outs=5,
        start_level=1,
        norm_cfg=norm_cfg,
    )
)
# Batch statistics want more images per GPU, as the authors have. The base learning rate is for 16 images: 4 GPUs x 4.
train_dataloader = dict(batch_size=4)
