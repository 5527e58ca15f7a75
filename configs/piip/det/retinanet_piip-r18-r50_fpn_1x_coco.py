_base_ = 'mmdet::retinanet/retinanet_r50_fpn_1x_coco.py'

# Two stock networks: ResNet-50 sees the image at half its size, ResNet-18 the whole. They exchange features eight times.
model = dict(
    backbone=dict(
        _delete_=True,
        type='mmext.PIIP',
        arch=dict(
            branches=(
                dict(
                    type='mmdet.ResNet', depth=50, init_cfg=dict(type='Pretrained', checkpoint='torchvision://resnet50')
                ),
                dict(
                    type='mmdet.ResNet', depth=18, init_cfg=dict(type='Pretrained', checkpoint='torchvision://resnet18')
                ),
            ),
            sizes=(1, 2),
            interactions=8,
        ),
        num_heads=8,
        out_indices=(1, 2, 3),
    ),
    # At each scale the maps have the channels of ResNet-50.
    neck=dict(in_channels=[512, 1024, 2048], start_level=0),
)
optim_wrapper = dict(clip_grad=dict(max_norm=35, norm_type=2))
