_base_ = 'mmdet::fcos/fcos_r50-caffe_fpn_gn-head-center-normbbox-centeronreg-giou_1x_coco.py'

model = dict(
    bbox_head=dict(
        type='mmext.BVRHead',
        head='FCOSHead',
        base_size=(300, 300),
        keypoint_head=dict(logits_convs=0),
    ),
)
