_base_ = './retinanet_r50_fpn_sepc-pconv_1x_coco.py'

model = dict(neck=[_base_.model.neck[0], dict(_base_.model.neck[1], ibn=True)])
# Batch statistics want more images per GPU. The base learning rate is for 16 images: 4 GPUs x 4.
train_dataloader = dict(batch_size=4)
