# natix-hf in a container. The base decides about PyTorch. If it has one, that stays, because it fits the base's CUDA.
# If it has none, the CPU build is installed. All other packages are those of constraints.txt.
#
#   docker build -t natix-hf .                                                                          CPU
#   docker build -t natix-hf --build-arg BASE=pytorch/pytorch:2.8.0-cuda12.8-cudnn9-runtime .           NVIDIA GPUs
#
#   docker run --rm natix-hf doctor
#   docker run --rm --gpus all --shm-size 8g -e HF_TOKEN -v natix-cache:/cache -v "$PWD:/work" \
#     --user "$(id -u):$(id -g)" natix-hf run roadwork_dinov2_base
#
# Without --gpus all there is no GPU. --shm-size is for the loader's workers. /cache holds what was downloaded and
# decoded. /work is the folder where the command runs: recipes, pictures and outputs/. HF_TOKEN is given only to a run.
ARG BASE=python:3.12-slim
FROM ${BASE}

ARG TORCH_INDEX=https://download.pytorch.org/whl/cpu
ENV PIP_NO_CACHE_DIR=1 PIP_BREAK_SYSTEM_PACKAGES=1 PIP_DISABLE_PIP_VERSION_CHECK=1 PIP_ROOT_USER_ACTION=ignore
WORKDIR /opt/natix_hf

COPY constraints.txt ./
RUN if python3 -c "from importlib.metadata import version as v; print('torch==' + v('torch'))" > keep.txt 2>/dev/null; \
    then echo "the base keeps its $(cat keep.txt)"; \
    else python3 -m pip install --constraint constraints.txt --extra-index-url "$TORCH_INDEX" torch \
      && grep '^torch==' constraints.txt > keep.txt; \
    fi \
    && grep -v '^torch==' constraints.txt >> keep.txt

COPY pyproject.toml README.md LICENSE ./
COPY accelerate_configs accelerate_configs
COPY docs/api.md docs/keys.md docs/
COPY model_cards model_cards
COPY natix_hf natix_hf
COPY recipes recipes
RUN python3 -m pip install --constraint keep.txt ".[heic,onnx,tensorboard]"

# Any user can write to /cache and /work, so --user works. torch.compile asks for the user's name, hence USER.
RUN useradd --create-home --uid 10001 natix && mkdir -p /cache /work && chmod 1777 /cache /work
ENV HF_HOME=/cache/huggingface XDG_CACHE_HOME=/cache MPLCONFIGDIR=/cache/matplotlib HOME=/tmp USER=natix
USER natix
VOLUME ["/cache"]
WORKDIR /work
ENTRYPOINT ["natix-hf"]
CMD ["--help"]
